//! What the log hears of lines that are refused, and of what is put up with.

use crate::support::Rig;

#[tokio::test(start_paused = true)]
async fn a_line_refused_for_its_syntax_is_in_the_log() {
    let rig = Rig::new();
    let mut client = rig.connect();
    client.hear("220 ").await;
    client.say("EHLO", "501 5.5.2").await;
    client.say("EHLO c", "250-").await;
    client.say("MAIL FROM:<a b@example.com>", "501 5.1.7").await;
    client.say("MAIL FROM:<a@b> SIZE=x", "501 5.5.4").await;
    client.say("MAIL FROM:<\u{fc}@b> ", "553 5.6.7").await;
    client.say("RCPT TO:<b>", "501 5.1.3").await;
    client.say("MAIL FROM:<a@example.com>", "250 ").await;
    client.say("RCPT TO:<\u{fc}@example.jp>", "553 5.6.7").await;
    client.say("RCPT TO:<b\\@example.jp>", "501 5.1.3").await;
    client
        .say(&format!("NOOP {}", "x".repeat(900)), "500 5.5.2")
        .await;
    client.say(&"y".repeat(1100), "500 5.5.2").await;
    client.say("BDAT x", "501 5.5.4").await;
    let cut = format!("NOOP {}... of 905 octets", "x".repeat(295));
    assert_eq!(
        rig.edge.reasons(),
        [
            "EHLO",
            "MAIL FROM:<a b@example.com>",
            "MAIL FROM:<a@b> SIZE=x",
            "MAIL FROM:<\\xc3\\xbc@b> ",
            "RCPT TO:<b>",
            "RCPT TO:<\\xc3\\xbc@example.jp>",
            "RCPT TO:<b\\\\@example.jp>",
            &cut,
            "a line of over 1 KiB",
            "BDAT x",
        ]
    );
    // where two parsers could differ about the end of a line
    let rig = Rig::new();
    let mut client = rig.connect();
    client.hear("220 ").await;
    client.send("EHLO x\nMAIL FROM:<a@b>\r\n").await;
    client.hear("500 5.5.2").await;
    assert_eq!(rig.edge.reasons(), ["EHLO x\\x0a"]);
}

#[tokio::test(start_paused = true)]
async fn passwords_and_bodies_are_not() {
    for (refused, reply, logged) in [
        (
            "AUTH PLAIN AHUAc2VjcmV0",
            "502 5.5.1",
            "AUTH... of 23 octets",
        ),
        ("DATA", "503 5.5.1", "DATA"),
    ] {
        let rig = Rig::new();
        let mut client = rig.connect();
        client.hear("220 ").await;
        client.say("EHLO c", "250-").await;
        client.say("PASS secret", "500 5.5.1").await;
        client.say(refused, reply).await;
        client.say("c2VjcmV0", "500 5.5.1").await;
        client.say("Mail from home", "501 5.5.4").await;
        client.say("MAIL FROM:<a", "501 5.1.7").await;
        let hidden = ["a line of 8 octets", "a line of 14 octets", "MAIL FROM:<a"];
        let first = ["PASS... of 11 octets", logged];
        assert_eq!(rig.edge.reasons(), [&first[..], &hidden[..]].concat());
    }
    // the backend refuses DATA
    let rig = Rig::new();
    let mut client = rig.connect();
    client.hear("220 ").await;
    client.say("EHLO c", "250-").await;
    client.say("MAIL FROM:<a@example.com>", "250 ").await;
    client.say("RCPT TO:<nodata@example.jp>", "250 ").await;
    client.say("DATA", "451 ").await;
    client.say("Dear Bob", "500 5.5.1").await;
    assert_eq!(rig.edge.reasons(), ["", "a line of 8 octets"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_put_up_with_is_in_the_log() {
    let rig = Rig::new();
    let mut client = rig.connect();
    client.hear("220 ").await;
    client.say("EHLO my pc", "250-").await;
    client.say("RCPT TO:<b@example.jp> ORCPT=x", "503 ").await;
    client
        .say("MAIL FROM:<a@example.com> ENVID=a=b", "250 ")
        .await;
    client
        .say("RCPT TO:<b@example.jp> ORCPT=rfc822;a=b@c", "250 ")
        .await;
    client.say("DATA", "354 ").await;
    client.send("x\r\n.\r\n").await;
    client.hear("250 ").await;
    assert_eq!(
        rig.edge.tolerated(),
        [
            "the client's name is no host name: EHLO my pc",
            "ENVID is malformed, left out: MAIL FROM:<a@example.com> ENVID=a=b",
            "ORCPT is malformed, left out: RCPT TO:<b@example.jp> ORCPT=rfc822;a=b@c",
        ]
    );
    let stored = rig.edge.stored();
    assert_eq!(stored[0].recipients, ["<b@example.jp>"]);
    assert_eq!(stored[0].reports, [" "]);
    assert_eq!(stored[0].client, "my pc");
}
