//! What goes with a mail besides its content: SMTPUTF8 (RFC 6531) and the DSN parameters (RFC 3461).

use crate::support::Rig;

#[tokio::test(start_paused = true)]
async fn parameters_reach_the_edge_decoded() {
    let rig = Rig::new();
    let mut client = rig.connect();
    client.hear("220 ").await;
    client.say("EHLO c", "250-").await;
    client
        .say(
            "MAIL FROM:<a@example.com> RET=HDRS ENVID=A+2BB",
            "250 2.1.0",
        )
        .await;
    client
        .say(
            "RCPT TO:<b@example.jp> NOTIFY=FAILURE,DELAY ORCPT=rfc822;B+40x",
            "250 2.1.5",
        )
        .await;
    // a repetition asks for nothing new
    client
        .say("RCPT TO:<b@example.jp> NOTIFY=NEVER", "250 2.1.5")
        .await;
    client
        .say("RCPT TO:<c@example.jp> NOTIFY=NEVER", "250 2.1.5")
        .await;
    client.say("DATA", "354 ").await;
    client.send("x\r\n.\r\n").await;
    client.hear("250 ").await;
    let stored = rig.edge.stored();
    assert_eq!(stored[0].parameters, "false HDRS A+B");
    assert_eq!(stored[0].reports, ["FAILURE,DELAY rfc822;B@x", "NEVER "]);
}

#[tokio::test(start_paused = true)]
async fn characters_outside_ascii_need_smtputf8() {
    // B-66, B-67
    let rig = Rig::new();
    let mut client = rig.connect();
    client.hear("220 ").await;
    client.say("EHLO c", "250-").await;
    client.say("RCPT TO:<\u{fc}@example.jp>", "503 5.5.1").await;
    client
        .say("MAIL FROM:<\u{fc}@example.com>", "553 5.6.7")
        .await;
    client.say("MAIL FROM:<a@example.com>", "250 ").await;
    for path in ["\u{fc}@example.jp", "u@b\u{fc}cher.example"] {
        client.say(&format!("RCPT TO:<{path}>"), "553 5.6.7").await;
    }
    // nobody has been asked for, and the transaction is still there
    client.say("DATA", "503 5.5.1").await;
    client.say("RCPT TO:<a@example.jp>", "250 ").await;
    client.say("RCPT TO:<\u{fc}@example.jp>", "553 5.6.7").await;
    client.say("RSET", "250 ").await;
    client
        .say("MAIL FROM:<ju\u{308}@b\u{fc}cher.example> SMTPUTF8", "250 ")
        .await;
    for path in [
        "j\u{fc}@example.jp",
        "ju\u{308}@EXAMPLE.jp",
        "u@b\u{fc}cher.example",
    ] {
        client.say(&format!("RCPT TO:<{path}>"), "250 ").await;
    }
    client.say("DATA", "354 ").await;
    client.send("x\r\n.\r\n").await;
    client.hear("250 ").await;
    let stored = rig.edge.stored();
    assert_eq!(stored.len(), 1);
    assert_eq!(stored[0].reverse_path, "j\u{fc}@xn--bcher-kva.example");
    assert_eq!(
        stored[0].recipients,
        ["<j\u{fc}@example.jp>", "<u@xn--bcher-kva.example>"]
    );
    assert_eq!(stored[0].protocol, "UTF8SMTP");
    // the next mail begins without
    client.say("MAIL FROM:<a@example.com>", "250 ").await;
    client.say("RCPT TO:<\u{fc}@example.jp>", "553 5.6.7").await;
}

#[tokio::test(start_paused = true)]
async fn vrfy_changes_nothing() {
    // B-57, B-78
    let rig = Rig::new();
    let mut client = rig.connect();
    client.up_to_data().await;
    client.send(".\r\n").await;
    client.hear("250 ").await;
    client.say("MAIL FROM:<a@example.com>", "250 ").await;
    client.say("VRFY \u{fc}", "553 5.6.7").await;
    client.say("VRFY \u{fc} SMTPUTF8", "252 2.0.0").await;
    client.say("VRFY bad@example.jp", "252 2.0.0").await;
    client.say("DATA", "503 5.5.1").await;
    client.say("RCPT TO:<b@example.jp>", "250 ").await;
    client.say("VRFY \u{fc}", "553 5.6.7").await;
    client.say("DATA", "354 ").await;
}
