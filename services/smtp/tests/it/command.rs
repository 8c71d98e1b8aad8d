//! The grammar of command lines.

use hikyaku_mail::path::{ForwardPath, ReversePath};
use hikyaku_smtp::command::{BodyType, Command, MailParameters, Refusal, parse};

fn refused(line: impl AsRef<[u8]>) -> Refusal {
    parse(line.as_ref()).expect_err(&String::from_utf8_lossy(line.as_ref()))
}

fn mail(line: &str) -> MailParameters {
    match parse(line.as_bytes()) {
        Ok(Command::Mail(mail)) => mail,
        other => panic!("{line}: {other:?}"),
    }
}

fn rcpt(line: &str) -> String {
    match parse(line.as_bytes()) {
        Ok(Command::Rcpt(path)) => path.to_string(),
        other => panic!("{line}: {other:?}"),
    }
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
        ("VRFY \u{fc}", Command::Vrfy),
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
    assert_eq!(refused("BDAT 10"), Refusal::Chunking);
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
        "EHLO my_pc's",
        &longest,
    ] {
        assert!(
            matches!(
                parse(line.as_bytes()),
                Ok(Command::Ehlo(_) | Command::Helo(_))
            ),
            "{line:?}"
        );
    }
    let too_long = format!("EHLO {}", "x".repeat(256));
    for line in [
        "EHLO",
        "EHLO ",
        "HELO",
        "EHLO [1.2.3",
        "EHLO [1.2.3]",
        "EHLO a\0b",
        "EHLO a b",
        "EHLO a\x07",
        "EHLO (x)",
        "EHLO \u{fc}",
        &too_long,
    ] {
        assert_eq!(refused(line), Refusal::ClientName, "{line:?}");
    }
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
        "MAIL FROM:<a@b> RET=HDRS",
        "MAIL FROM:<a@b> SMTPUTF8",
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
        parse(b"RCPT TO:<postmaster>"),
        Ok(Command::Rcpt(ForwardPath::Postmaster))
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
        &format!("<{}@x.jp>", "u".repeat(65)),
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
    assert_eq!(refused("RCPT TO:<u@x> NOTIFY=NEVER"), Refusal::Parameter);
    assert_eq!(refused("RCPT TO:<u@x> NOTIFY=\x01"), Refusal::Argument);
    assert_eq!(refused("RCPT TO:<u@x>NOTIFY=NEVER"), Refusal::Argument);
    assert_eq!(refused("RCPT TO:<\u{ff20}@x>"), Refusal::NotAscii);
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
    assert_eq!(filled(555).len(), 553);
    assert_eq!(mail(&filled(555)).size, Some(1));
    assert_eq!(refused(filled(556)), Refusal::TooLong);
}
