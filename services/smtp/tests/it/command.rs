//! The grammar of command lines.

use hikyaku_mail::path::{ForwardPath, ReversePath};
use hikyaku_smtp::command::{Chunk, Command, MailParameters, RcptParameters, Refusal, parse};
use hikyaku_smtp::parameters::{BodyType, Return};

fn refused(line: impl AsRef<[u8]>) -> Refusal {
    parse(line.as_ref()).expect_err(&String::from_utf8_lossy(line.as_ref()))
}

fn mail(line: &str) -> MailParameters {
    match parse(line.as_bytes()) {
        Ok(Command::Mail(mail)) => mail,
        other => panic!("{line}: {other:?}"),
    }
}

fn rcpt_parameters(line: &str) -> RcptParameters {
    match parse(line.as_bytes()) {
        Ok(Command::Rcpt(rcpt)) => rcpt,
        other => panic!("{line}: {other:?}"),
    }
}

fn rcpt(line: &str) -> String {
    rcpt_parameters(line).forward_path.to_string()
}

#[test]
fn verbs() {
    for (line, command) in [
        ("DATA", Command::Data),
        ("data \t ", Command::Data),
        ("RSET", Command::Rset),
        ("NOOP", Command::Noop),
        ("noop any thing", Command::Noop),
        ("QUIT", Command::Quit),
        ("StartTls", Command::StartTls),
        ("VRFY alice", Command::Vrfy),
        ("VRFY \u{fc} SMTPUTF8", Command::Vrfy),
        ("HELP", Command::Help),
    ] {
        assert_eq!(parse(line.as_bytes()), Ok(command), "{line:?}");
    }
    for line in [
        "",
        " NOOP",
        "\x16\x03\x01",
        "NO\0OP",
        "NOOP a\0b",
        "NOOP \x1b",
        "\u{fc}",
        "MAIL\tFROM:<a@b>",
    ] {
        assert_eq!(refused(line), Refusal::Syntax, "{line:?}");
    }
    for line in ["DEBUG", "WIZ", "XYZZY 1", "EHLOx"] {
        assert_eq!(refused(line), Refusal::Unknown, "{line:?}");
    }
    for line in [
        "AUTH PLAIN AAA=",
        "EXPN x",
        "ETRN x",
        "TURN",
        "XCLIENT ADDR=1.2.3.4",
        "XFORWARD NAME=x",
    ] {
        assert_eq!(refused(line), Refusal::NotOffered, "{line:?}");
    }
    // B-57
    for line in [&b"VRFY \xc3\xbc"[..], b"VRFY \xfc SMTPUTF8"] {
        assert_eq!(refused(line), Refusal::NotAscii, "{line:?}");
    }
    assert_eq!(refused("GET / HTTP/1.1"), Refusal::Http);
    for line in [
        "DATA x",
        "RSET x",
        "QUIT x",
        "STARTTLS x",
        "MAIL",
        "MAIL FROM",
        "MAIL TO:<a@b>",
        "RCPT",
        "RCPT FROM:<a@b>",
    ] {
        assert_eq!(refused(line), Refusal::Argument, "{line:?}");
    }
}

#[test]
fn client_names() {
    let longest = format!("EHLO {}", "x".repeat(255));
    for line in [
        "EHLO mx.example.jp",
        "ehlo [192.0.2.1]",
        "HELO [IPv6:2001:db8::1]",
    ] {
        let command = parse(line.as_bytes()).unwrap();
        assert!(matches!(command, Command::Ehlo(_) | Command::Helo(_)));
        assert_eq!(command.tolerated(), None, "{line:?}");
    }
    for line in [
        "EHLO my_pc's",
        "EHLO 2001:db8::1",
        "HELO [2001:db8::1]",
        "HELO  My PC of Bob ",
        "EHLO \u{30e1}\u{30fc}\u{30eb}.example",
        &longest,
    ] {
        let command = parse(line.as_bytes()).unwrap();
        let (Command::Ehlo(name) | Command::Helo(name)) = &command else {
            panic!("{line:?} is {command:?}");
        };
        assert_eq!(name.as_str(), line[5..].trim(), "as it was said");
        assert!(command.tolerated().is_some(), "{line:?}");
    }
    let too_long = format!("EHLO {}", "x".repeat(256));
    for line in [
        "EHLO",
        "EHLO ",
        "HELO",
        "EHLO [1.2.3",
        "EHLO [1.2.3]",
        "EHLO [2001:db8::g]",
        "EHLO a\0b",
        "EHLO a\tb",
        "EHLO a\x07",
        "EHLO (x)",
        "EHLO a\u{85}b",
        "EHLO a\u{202e}b",
        &too_long,
    ] {
        assert_eq!(refused(line), Refusal::ClientName, "{line:?}");
    }
    assert_eq!(refused(b"EHLO \xff"), Refusal::ClientName);
}

#[test]
fn mail_and_its_parameters() {
    assert_eq!(mail("MAIL FROM:<>").reverse_path, ReversePath::Null);
    assert_eq!(mail("mail from: <A@X.jp>").reverse_path.as_str(), "A@x.jp");
    assert_eq!(
        mail("MAIL FROM:<@a.jp,@b.jp:a@x.jp>").reverse_path.as_str(),
        "a@x.jp"
    );
    let all = mail("MAIL FROM:<\"a b> c\"@x.jp>  size=77 Body=8bitmime ");
    assert_eq!(
        (all.reverse_path.as_str(), all.size, all.body),
        ("\"a b> c\"@x.jp", Some(77), Some(BodyType::EightBitMime))
    );
    assert_eq!(
        mail("MAIL FROM:<> BODY=7BIT SIZE=99999999999999999999").size,
        Some(u64::MAX)
    );

    for line in [
        "MAIL FROM:a@b",
        "MAIL FROM:<a@b",
        "MAIL FROM:<a>",
        "MAIL FROM:<postmaster>",
        "MAIL FROM:<a@b\0c>",
        "MAIL FROM:<\"a@b\">",
        "MAIL FROM:",
    ] {
        assert_eq!(refused(line), Refusal::ReversePath, "{line:?}");
    }
    for line in [
        "MAIL FROM:<a@b>SIZE=1",
        "MAIL FROM:<a@b> SIZE=abc",
        "MAIL FROM:<a@b> SIZE=-1",
        "MAIL FROM:<a@b> SIZE=",
        "MAIL FROM:<a@b> SIZE",
        "MAIL FROM:<a@b> SIZE=1 SIZE=1",
        "MAIL FROM:<a@b> SIZE=999999999999999999999",
        "MAIL FROM:<a@b> BODY=9BIT",
        "MAIL FROM:<a@b> BODY",
        "MAIL FROM:<a@b> =1",
        "MAIL FROM:<a@b> A\x01=1",
        "MAIL FROM:<a@b> X=a=b",
    ] {
        assert_eq!(refused(line), Refusal::Argument, "{line:?}");
    }
    for line in [
        "MAIL FROM:<a@b> NOTIFY=NEVER",
        "MAIL FROM:<a@b> MT-PRIORITY=3",
        "MAIL FROM:<a@b> REQUIRETLS",
        "MAIL FROM:<a@b> BODY=BINARYMIME",
        "MAIL FROM:<a@b> AUTH=<>",
    ] {
        assert_eq!(refused(line), Refusal::Parameter, "{line:?}");
    }
    assert_eq!(refused("MAIL FROM:<\u{fc}@x.jp>"), Refusal::NotAscii);
    assert_eq!(refused(b"MAIL FROM:<\xff@x.jp>"), Refusal::NotAscii);
}

#[test]
fn rcpt_paths() {
    assert_eq!(rcpt("RCPT TO:<PostMaster>"), "<postmaster>");
    assert_eq!(
        rcpt_parameters("RCPT TO:<postmaster>").forward_path,
        ForwardPath::Postmaster
    );
    assert_eq!(rcpt("rcpt to: <u@LOCAL.example.>"), "<u@local.example>");
    assert_eq!(
        rcpt("RCPT TO:<\"u@ext.example\"@local.example>"),
        "<\"u@ext.example\"@local.example>"
    );
    assert_eq!(
        rcpt("RCPT TO:<u%ext.example@local.example>"),
        "<u%ext.example@local.example>"
    );
    assert_eq!(
        rcpt("RCPT TO:<@[192.0.2.1]:u@ext.example>"),
        "<u@ext.example>"
    );
    for path in [
        "<>",
        "<\"u@ext.example\">",
        "<u@ext.example@local.example>",
        "<u@ext.example@[192.0.2.1]>",
        "<ext.example!u>",
        "<u@local.example\0.ext>",
        "<u@a..b>",
        "u@x",
        "<u@[::1]>",
        &format!("<{}@x.jp>", "u".repeat(250)),
        &format!("<u@{}.jp>", "x".repeat(64)),
        &format!("<u@{}jp>", "x.".repeat(127)),
        &format!("<{}>", "u".repeat(257)),
    ] {
        assert_eq!(
            refused(format!("RCPT TO:{path}")),
            Refusal::ForwardPath,
            "{path:?}"
        );
    }
    // dots anywhere, and a local part as long as a path
    let longest = format!("<{}@x.jp>", "u".repeat(249));
    for path in [
        "<hana..ko@docomo.example>",
        "<hanako.@ezweb.example>",
        "<bounces+1234567-ab12-taro.yamada.sales=company.example@mail.provider.example>",
        &longest,
    ] {
        assert_eq!(rcpt(&format!("RCPT TO:{path}")), path);
        let sender = mail(&format!("MAIL FROM:{path}"));
        assert_eq!(sender.reverse_path.to_string(), path);
    }
    assert_eq!(refused("RCPT TO:<u@x> RET=FULL"), Refusal::Parameter);
    assert_eq!(refused("RCPT TO:<u@x> NOTIFY=\x01"), Refusal::Argument);
    assert_eq!(refused("RCPT TO:<u@x>NOTIFY=NEVER"), Refusal::Argument);
}

#[test]
fn paths_outside_ascii() {
    // B-66, B-67: whether RCPT may have them is the session's to know
    let mail = mail("MAIL FROM:<ju\u{308}rgen@b\u{fc}cher.example> smtputf8 BODY=8BITMIME");
    assert_eq!(
        mail.reverse_path.as_str(),
        "j\u{fc}rgen@xn--bcher-kva.example"
    );
    assert!(mail.smtputf8);
    let rcpt = rcpt_parameters("RCPT TO:<u@b\u{fc}cher.example>");
    assert_eq!(
        (rcpt.forward_path.to_string().as_str(), rcpt.utf8),
        ("<u@xn--bcher-kva.example>", true)
    );
    assert!(!rcpt_parameters("RCPT TO:<u@xn--bcher-kva.example>").utf8);
    for line in [
        &b"MAIL FROM:<\xc3\xbc@x.jp>"[..],
        b"MAIL FROM:<\xff@x.jp> SMTPUTF8",
        // overlong, surrogate, over U+10FFFF
        b"MAIL FROM:<\xc0\xafu@x.jp> SMTPUTF8",
        b"MAIL FROM:<\xed\xa0\x80u@x.jp> SMTPUTF8",
        b"MAIL FROM:<\xf4\x90\x80\x80u@x.jp> SMTPUTF8",
        b"RCPT TO:<\xc0\xafu@x.jp>",
    ] {
        assert_eq!(refused(line), Refusal::NotAscii, "{line:?}");
    }
    for line in [
        "MAIL FROM:<a\u{200d}b@x.jp> SMTPUTF8",
        "MAIL FROM:<\u{fc}@a\u{ff20}b.jp> SMTPUTF8",
    ] {
        assert_eq!(refused(line), Refusal::ReversePath, "{line:?}");
    }
    for line in [
        "MAIL FROM:<a@b> SMTPUTF8=1",
        "MAIL FROM:<a@b> SMTPUTF8 SMTPUTF8",
    ] {
        assert_eq!(refused(line), Refusal::Argument, "{line:?}");
    }
    // B-100
    for path in ["u@xn--abc-.jp", "u@xn--a.jp", "u@xn--\u{fc}.jp"] {
        assert_eq!(
            refused(format!("RCPT TO:<{path}>")),
            Refusal::ForwardPath,
            "{path:?}"
        );
    }
}

#[test]
fn chunks() {
    let chunk = |size, last| Ok(Command::Bdat(Chunk { size, last }));
    assert_eq!(parse(b"BDAT 10"), chunk(10, false));
    assert_eq!(parse(b"bdat 0 last "), chunk(0, true));
    assert_eq!(parse(b"BDAT 18446744073709551615"), chunk(u64::MAX, false));
    // B-59
    for line in [
        "BDAT",
        "BDAT ",
        "BDAT LAST",
        "BDAT -1",
        "BDAT +1",
        "BDAT 0x10",
        "BDAT 99999999999999999999",
        "BDAT 10 LAST x",
        "BDAT 10 x",
        "BDAT \u{661}",
        &format!("BDAT {}10", " ".repeat(600)),
    ] {
        assert_eq!(refused(line), Refusal::Chunk, "{line:?}");
        assert!(refused(line).closes());
    }
}

#[test]
fn what_the_sender_wants_to_hear() {
    let all = mail("MAIL FROM:<a@b> RET=hdrs ENVID=QQ+2B314159+20x");
    assert_eq!(
        (all.ret, all.envelope_id.as_deref()),
        (Some(Return::Headers), Some("QQ+314159 x"))
    );
    for (value, notify) in [
        ("never", "NEVER"),
        ("FAILURE", "FAILURE"),
        ("delay,success", "SUCCESS,DELAY"),
        ("SUCCESS,FAILURE,DELAY", "SUCCESS,FAILURE,DELAY"),
    ] {
        let rcpt = rcpt_parameters(&format!("RCPT TO:<a@b> NOTIFY={value}"));
        assert_eq!(rcpt.notify.unwrap().to_string(), notify);
    }
    for (value, original) in [
        ("rfc822;Bob@Example.COM", "rfc822;Bob@Example.COM"),
        ("RFC822;a+2Bb+40c", "rfc822;a+b@c"),
        ("utf-8;\\x{FC}@x", "utf-8;\\x{FC}@x"),
        ("utf-8;\u{fc}+20@x", "utf-8;\\x{FC} @x"),
    ] {
        let rcpt = rcpt_parameters(&format!("RCPT TO:<a@b> ORCPT={value}"));
        assert_eq!(rcpt.original_recipient.as_deref(), Some(original));
    }
    // B-74, B-75
    let (long_id, long_original) = (
        format!("ENVID={}", "x".repeat(101)),
        format!("ORCPT=rfc822;{}", "x".repeat(494)),
    );
    for parameter in [
        "RET=XX",
        "RET",
        "RET=FULL RET=FULL",
        "ENVID=a ENVID=b",
        "ENVID=+ ENVID=b",
    ] {
        let line = format!("MAIL FROM:<a@b> {parameter}");
        assert_eq!(refused(&line), Refusal::Argument, "{line:?}");
    }
    // what serves reports only is left out, and the mail taken
    for parameter in [
        "ENVID=+00",
        "ENVID=a+0D+0Ab",
        "ENVID=+4",
        "ENVID=+zz",
        "ENVID=+2b",
        "ENVID=+E3+81+82",
        "ENVID=QUJD==",
        "ENVID=\u{fc}",
        "ENVID=a\x07",
        "ENVID=",
        "ENVID",
        &long_id,
    ] {
        let mail = mail(&format!("MAIL FROM:<a@b> {parameter} RET=FULL"));
        assert_eq!(mail.envelope_id, None, "{parameter:?}");
        assert_eq!(mail.ret, Some(Return::Full));
        assert!(Command::Mail(mail).tolerated().is_some(), "{parameter:?}");
    }
    for parameter in [
        "NOTIFY=NEVER,FAILURE",
        "NOTIFY=FAILURE,FAILURE",
        "NOTIFY=FAILURE,",
        "NOTIFY=ALWAYS",
        "NOTIFY",
        "NOTIFY=NEVER NOTIFY=NEVER",
        "ORCPT=r c;a",
        "ORCPT=x ORCPT=rfc822;a@b",
    ] {
        let line = format!("RCPT TO:<a@b> {parameter}");
        assert_eq!(refused(&line), Refusal::Argument, "{line:?}");
    }
    for parameter in [
        "ORCPT=rfc822",
        "ORCPT=;a@b",
        "ORCPT=rfc822;",
        "ORCPT=rfc822;a+0D+0Ab",
        "ORCPT=rfc822;a+00",
        "ORCPT=rfc822;bounce+bob=x.example@y.example",
        "ORCPT=rfc822;\u{fc}",
        "ORCPT=rfc822;a\x07",
        "ORCPT=",
        "ORCPT",
        &long_original,
    ] {
        let rcpt = rcpt_parameters(&format!("RCPT TO:<a@b> {parameter} NOTIFY=NEVER"));
        assert_eq!(rcpt.original_recipient, None, "{parameter:?}");
        assert!(!rcpt.utf8 && rcpt.notify.is_some(), "{parameter:?}");
        assert!(Command::Rcpt(rcpt).tolerated().is_some(), "{parameter:?}");
    }
    assert_eq!(mail("MAIL FROM:<>").envelope_id, None);
    assert!(!mail("MAIL FROM:<>").envelope_id_lost);
    assert!(!rcpt_parameters("RCPT TO:<a@b>").original_recipient_lost);
}

#[test]
fn lengths() {
    assert_eq!(
        parse(format!("NOOP {}", "x".repeat(505)).as_bytes()),
        Ok(Command::Noop)
    );
    assert_eq!(
        refused(format!("NOOP {}", "x".repeat(506))),
        Refusal::TooLong
    );
    let filled = |length: usize| format!("MAIL FROM:<a@b> {:>1$}", "SIZE=1", length - 2 - 16);
    assert_eq!(filled(672).len(), 670);
    assert_eq!(mail(&filled(672)).size, Some(1));
    assert_eq!(refused(filled(673)), Refusal::TooLong);
    let filled = |length: usize| format!("RCPT TO:<a@b>{}", " ".repeat(length - 2 - 13));
    assert_eq!(rcpt(&filled(1012)), "<a@b>");
    assert_eq!(refused(filled(1013)), Refusal::TooLong);
}
