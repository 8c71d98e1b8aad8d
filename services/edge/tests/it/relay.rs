//! The open relay gate (B-90 to B-106): whatever the address looks like and whoever seems to send it, nothing is taken for
//! anybody who is not here.

use crate::support::Site;

/// Where probes come from, the last ones as a careless balancer might report them.
const SOURCES: [&str; 5] = [
    "198.51.100.7:5000",
    "127.0.0.1:5000",
    "[::1]:5000",
    "[::ffff:10.0.0.1]:5000",
    "10.0.0.1:5000",
];

/// The MAIL commands of nmap's smtp-open-relay and of the older lists.
const SENDERS: [&str; 6] = [
    "MAIL FROM:<>",
    "MAIL FROM:<antispam@ext.example>",
    "MAIL FROM:<antispam@mx.local.example>",
    "MAIL FROM:<antispam@[192.0.2.1]>",
    "MAIL FROM:<alice@local.example>",
    "MAIL FROM:<antispam@local.example>",
];

/// Every one of them is refused for good, by one of these replies.
const PROBES: [(&str, &[&str]); 67] = [
    // B-90
    ("u@ext.example", &["550 5.7.1"]),
    ("alice@ext.example", &["550 5.7.1"]),
    ("postmaster@ext.example", &["550 5.7.1"]),
    ("u@sub.local.example", &["550 5.7.1"]),
    ("u@example", &["550 5.7.1"]),
    ("u@localhost", &["550 5.7.1"]),
    ("u@mx.local.example", &["550 5.7.1"]),
    ("mailer-daemon@local.example", &["550 5.1.1"]),
    ("u@local.example.ext.example", &["550 5.7.1"]),
    ("u@xlocal.example", &["550 5.7.1"]),
    // B-91
    ("u%ext.example@[192.0.2.1]", &["550 5.7.1"]),
    ("u%ext.example@local.example", &["550 5.1.1"]),
    ("alice%ext.example@local.example", &["550 5.1.1"]),
    ("u%ext.example@ext.example", &["550 5.7.1"]),
    (
        "alice@local.example%ext.example",
        &["501 5.1.3", "550 5.7.1"],
    ),
    // B-92
    ("\"u@ext.example\"", &["501 5.1.3"]),
    ("\"u%ext.example\"", &["501 5.1.3"]),
    ("u", &["501 5.1.3"]),
    ("alice", &["501 5.1.3"]),
    ("\"postmaster\"", &["501 5.1.3"]),
    ("", &["501 5.1.3"]),
    // B-93
    ("u@ext.example@[192.0.2.1]", &["501 5.1.3"]),
    ("u@ext.example@local.example", &["501 5.1.3"]),
    ("alice@local.example@ext.example", &["501 5.1.3"]),
    // B-94
    ("\"u@ext.example\"@[192.0.2.1]", &["550 5.7.1"]),
    ("\"u@ext.example\"@local.example", &["550 5.1.1"]),
    ("\"alice@local.example\"@ext.example", &["550 5.7.1"]),
    ("\"alice\\\"@ext.example\"@local.example", &["550 5.1.1"]),
    // B-95
    ("@[192.0.2.1]:u@ext.example", &["550 5.7.1"]),
    ("@local.example:u@ext.example", &["550 5.7.1"]),
    ("@local.example,@ext.example:u@ext.example", &["550 5.7.1"]),
    (
        "@ext.example,@local.example:u@local.example",
        &["550 5.1.1"],
    ),
    ("@local.example:\"u@ext.example\"", &["501 5.1.3"]),
    ("@:u@ext.example", &["501 5.1.3"]),
    ("@local.example:", &["501 5.1.3"]),
    // B-96
    ("ext.example!u", &["501 5.1.3"]),
    ("ext.example!u@[192.0.2.1]", &["550 5.7.1"]),
    ("ext.example!u@local.example", &["550 5.1.1"]),
    ("local.example!ext.example!u", &["501 5.1.3"]),
    // B-97
    ("u@ext.example.", &["550 5.7.1"]),
    ("u@EXT.example", &["550 5.7.1"]),
    ("u@local.example.", &["550 5.1.1"]),
    ("u@local.example..", &["501 5.1.3"]),
    ("u@local.example\0.ext.example", &["501 5.1.3"]),
    ("u@ext.example\0@local.example", &["501 5.1.3"]),
    ("alice@local.example u@ext.example", &["501 5.1.3"]),
    ("u@ext.example,alice@local.example", &["501 5.1.3"]),
    ("u@ext.example;alice@local.example", &["501 5.1.3"]),
    ("u@local.example/ext.example", &["501 5.1.3"]),
    // B-98
    ("u@[127.0.0.1]", &["550 5.7.1"]),
    ("u@[::1]", &["501 5.1.3"]),
    ("u@[IPv6:::1]", &["550 5.7.1"]),
    ("u@[IPv6:::ffff:127.0.0.1]", &["550 5.7.1"]),
    ("u@[192.0.2.1]", &["550 5.7.1"]),
    ("u@[local.example]", &["501 5.1.3"]),
    ("u@2130706433", &["550 5.7.1"]),
    // B-99: nothing is decoded
    (
        "=?x?q?u=40ext.example=3e=00?=x@local.example",
        &["550 5.1.1"],
    ),
    ("=?utf-8?q?alice?=@local.example", &["550 5.1.1"]),
    ("alice+AEA-ext.example@ext.example", &["550 5.7.1"]),
    ("(comment)u@ext.example", &["501 5.1.3"]),
    ("alice(@ext.example)@local.example", &["501 5.1.3"]),
    ("u@ext.example(@local.example)", &["501 5.1.3"]),
    // B-100, B-101
    ("u@xn--abc-.example", &["501 5.1.3"]),
    ("u@loc\u{430}l.example", &["550 5.7.1"]),
    ("alice@l\u{f3}cal.example", &["550 5.7.1"]),
    ("\u{430}lice@local.example", &["550 5.1.1"]),
    ("u@local\u{ff20}ext.example", &["501 5.1.3"]),
];

#[tokio::test(start_paused = true)]
async fn all_probes_from_six_senders_get_nothing() {
    let site = Site::new();
    for (number, sender) in SENDERS.iter().enumerate() {
        let mut client = site.connect(SOURCES[number % SOURCES.len()]).await;
        for (probe, expected) in PROBES {
            client.must("RSET", "250 ").await;
            client.must(&format!("{sender} SMTPUTF8"), "250 ").await;
            let reply = client.say(format!("RCPT TO:<{probe}>")).await;
            assert!(
                expected.iter().any(|code| reply.starts_with(code)),
                "{sender} {probe:?}: {reply}"
            );
            let reply = client.say("DATA").await;
            assert!(
                reply.starts_with("503 5.5.1") || reply.starts_with("554 5.5.1"),
                "{probe:?}: {reply}"
            );
        }
    }
    // the same without SMTPUTF8, from everywhere, all in one transaction: nothing sticks
    for source in SOURCES {
        let mut client = site.connect(source).await;
        client.must("MAIL FROM:<>", "250 ").await;
        for (probe, _) in PROBES {
            let reply = client.say(format!("RCPT TO:<{probe}>")).await;
            assert!(reply.starts_with('5'), "{probe:?}: {reply}");
        }
        client.must("DATA", "554 5.5.1").await;
    }
    assert!(site.accepted().is_empty());
}

#[tokio::test(start_paused = true)]
async fn names_that_would_change_the_source_are_not_heard() {
    // B-77, B-104
    let site = Site::new();
    let mut client = site.connect(SOURCES[0]).await;
    for line in [
        "XCLIENT ADDR=127.0.0.1",
        "XFORWARD ADDR=127.0.0.1",
        "AUTH PLAIN AGFsaWNlAHNlY3JldA==",
    ] {
        client.must(line, "502 5.5.1").await;
    }
    let reply = client.say("PROXY TCP4 127.0.0.1 127.0.0.1 1 25").await;
    assert!(reply.starts_with("500 5.5.1"), "{reply}");
    client
        .must("MAIL FROM:<a@ext.example> AUTH=<>", "555 5.5.4")
        .await;
    client.must("MAIL FROM:<a@ext.example>", "250 ").await;
    client.must("RCPT TO:<u@ext.example>", "550 5.7.1").await;
}

#[tokio::test(start_paused = true)]
async fn everybody_who_is_here_gets_mail() {
    // the gate is not simply shut; B-95, B-97, B-101, B-103
    let site = Site::new();
    let mut client = site.connect(SOURCES[0]).await;
    let paths = [
        "alice@local.example",
        "ALICE@LOCAL.example.",
        "alice+detail@local.example",
        "\"alice\"@local.example",
        "@ext.example:alice@local.example",
        "alice@b\u{fc}cher.example",
        "alice@BU\u{308}CHER.example",
        "alice@xn--bcher-kva.example",
        "j\u{fc}rgen@local.example",
        "ju\u{308}rgen@local.example",
        // dots mean the same with quotes and without, and a local part may be long
        "hana..ko@local.example",
        "\"hana..ko\"@local.example",
        "HANAKO.@local.example",
        "\"hanako.\"@local.example",
        "hanako.+x@local.example",
        "bounces+1234567-ab12-taro.yamada.sales=company.example.of.hanako@local.example",
        "postmaster",
        "PostMaster",
        "POSTMASTER@local.example",
        "postmaster@xn--bcher-kva.example",
        "abuse@local.example",
        "hostmaster@local.example",
        // where our reports come from
        "MAILER-DAEMON@mx.local.example",
        "mailer-daemon+x@MX.local.example",
        "postmaster@mx.local.example",
    ];
    for path in paths {
        client.must("RSET", "250 ").await;
        client.must("MAIL FROM:<> SMTPUTF8", "250 ").await;
        client.must(&format!("RCPT TO:<{path}>"), "250 2.1.5").await;
        let reply = client.content("Subject: x\r\n\r\nbody\r\n").await;
        assert!(reply.starts_with("250 2.0.0"), "{path}: {reply}");
    }
    assert_eq!(site.accepted().len(), paths.len());
}
