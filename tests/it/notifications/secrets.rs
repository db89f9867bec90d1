//! The secrets of channels: they belong to their destination, and nobody repeats them.

use std::net::SocketAddr;

use base64::{Engine, prelude::BASE64_STANDARD};
use sea_orm::{ConnectionTrait, Statement};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
    task::JoinHandle,
};
use watchpost::pb::{self, SmtpSecurity, notification_channel::Kind};

use super::{
    SECRET,
    channels::{full, mail, update},
    delivery_when, get_channel, raise, ready, telling, with_ops,
};
use crate::support::{
    TestServer,
    calls::{refused, strings},
    database::{Backend, on_both},
};

const PASSWORD: &str = "correct-horse battery";

/// A mail server that refuses every login, and repeats it in the clear and as it was sent.
async fn echoing() -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                let _ = stream.write_all(b"220 here\r\n").await;
                let mut line = String::new();
                while stream.read_line(&mut line).await.is_ok_and(|read| read > 0) {
                    let said = line.trim().to_string();
                    line.clear();
                    let answer = if said.starts_with("EHLO") {
                        "250-here\r\n250 AUTH PLAIN\r\n".to_string()
                    } else if let Some(login) = said.strip_prefix("AUTH PLAIN ") {
                        let plain = BASE64_STANDARD.decode(login).unwrap();
                        let plain = String::from_utf8_lossy(&plain).replace('\0', "/");
                        format!("535 5.7.8 no such login: {plain} ({login})\r\n")
                    } else {
                        "250 ok\r\n".to_string()
                    };
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
            });
        }
    });
    (address, serving)
}

fn to_mail_server(address: SocketAddr) -> pb::EmailChannel {
    pb::EmailChannel {
        host: address.ip().to_string(),
        port: address.port().into(),
        security: SmtpSecurity::None.into(),
        password: PASSWORD.into(),
        ..mail()
    }
}

/// The text in the column `config` of the only channel.
async fn config(server: &TestServer) -> String {
    let db = server.database.connect().await;
    let sql = "SELECT CAST(config AS TEXT) AS config FROM notification_channels";
    let sql = Statement::from_string(db.get_database_backend(), sql);
    let row = db.query_one_raw(sql).await.unwrap().unwrap();
    let config = row.try_get("", "config").unwrap();
    db.close().await.unwrap();
    config
}

#[on_both]
async fn another_url_needs_every_secret_again(backend: Backend) {
    let server = ready(backend).await;
    let channel = server.notification_channel(full()).await;
    let change = |url: &str, secrets: &[&str], headers: &[(&str, &str)]| pb::NotificationChannel {
        id: channel.id.clone(),
        kind: Some(Kind::Webhook(pb::WebhookChannel {
            url: url.into(),
            signing_secrets: strings(secrets),
            headers: headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
            ..Default::default()
        })),
        ..Default::default()
    };
    let token = [("Authorization", "Bearer new")];
    for url in [
        "http://example.com/hook?x=1",
        "https://example.org/hook?x=1",
        "https://example.com:8443/hook?x=1",
        "https://example.com/other?x=1",
        "https://example.com/hook?x=2",
        "https://example.com/",
    ] {
        let field = |name: &str| format!("notification_channel.webhook.{name}");
        refused(update(&server, change(url, &[], &[]), &[]).await, &field("signing_secrets"));
        refused(update(&server, change(url, &[], &token), &[]).await, &field("signing_secrets"));
        refused(update(&server, change(url, &[SECRET], &[]), &[]).await, &field("headers"));
        let paths = ["webhook.url", "webhook.headers"];
        refused(update(&server, change(url, &[SECRET], &token), &paths).await, &field("signing_secrets"));
    }
    refused(
        update(&server, change("https://example.org/***", &[SECRET], &token), &[]).await,
        "notification_channel.webhook.url",
    );
    // The same URL, whole or as it is shown, is no other destination.
    for same in ["https://example.com/hook?x=1", "https://EXAMPLE.com:443/hook?x=1", "https://example.com/***"] {
        update(&server, change(same, &[], &[]), &[]).await.unwrap();
    }
    let all = ["webhook.url", "webhook.headers", "webhook.signing_secrets"];
    let moved = update(&server, change("https://example.org/hook", &[SECRET], &[]), &all).await.unwrap().into_inner();
    let Some(Kind::Webhook(hook)) = moved.kind else { panic!("no webhook") };
    assert_eq!((hook.url.as_str(), hook.signing_secret_count), ("https://example.org/***", 1));
    assert_eq!(hook.header_names, Vec::<String>::new());
    server.stop().await;
}

#[on_both]
async fn another_mail_server_needs_the_password_again(backend: Backend) {
    let server = ready(backend).await;
    let channel =
        pb::NotificationChannel { name: "mail".into(), kind: Some(Kind::Email(mail())), ..Default::default() };
    let channel = server.notification_channel(channel).await;
    let change = |email: pb::EmailChannel| pb::NotificationChannel {
        id: channel.id.clone(),
        kind: Some(Kind::Email(email)),
        ..Default::default()
    };
    let empty = pb::EmailChannel::default;
    let elsewhere = [
        pb::EmailChannel { host: "mail.example.org".into(), ..empty() },
        pb::EmailChannel { port: 2525, ..empty() },
        pb::EmailChannel { security: SmtpSecurity::None.into(), port: 587, ..empty() },
    ];
    for email in elsewhere {
        refused(update(&server, change(email.clone()), &[]).await, "notification_channel.email.password");
        let anew = pb::EmailChannel { password: "again".into(), ..email };
        update(&server, change(anew), &[]).await.unwrap();
        let back = pb::EmailChannel {
            password: "hunter2".into(),
            port: 587,
            security: SmtpSecurity::Starttls.into(),
            ..mail()
        };
        update(&server, change(back), &[]).await.unwrap();
    }
    let same = pb::EmailChannel { host: "MAIL.example.com".into(), username: Some("other".into()), ..empty() };
    update(&server, change(same), &[]).await.unwrap();
    // Without a user there is no password to send.
    let nobody = pb::EmailChannel { host: "mail.example.org".into(), ..empty() };
    let moved = update(&server, change(nobody), &["email.host", "email.username"]).await.unwrap().into_inner();
    assert!(matches!(moved.kind, Some(Kind::Email(email)) if !email.has_password));
    server.stop().await;
}

#[on_both]
async fn what_a_mail_server_repeats_of_a_password_is_hidden(backend: Backend) {
    let server = ready(backend).await;
    let (address, serving) = echoing().await;
    let channel = pb::NotificationChannel {
        name: "ops".into(),
        kind: Some(Kind::Email(to_mail_server(address))),
        ..Default::default()
    };
    let channel = server.notification_channel(channel).await;
    server.rule(telling(&["ops"])).await;
    let alert = raise(&server).await;
    let delivery = delivery_when(&server, &alert.id, |delivery| delivery.last_error.is_some()).await;
    let request = pb::SendTestNotificationRequest { id: channel.id };
    let tested = server.channels().send_test_notification(request).await.unwrap().into_inner();
    let encoded = BASE64_STANDARD.encode(format!("\0watchpost\0{PASSWORD}"));
    for error in [delivery.last_error.unwrap(), tested.error] {
        assert!(error.contains("no such login") && error.contains("***"), "{error}");
        assert!(!error.contains("correct") && !error.contains("battery"), "{error}");
        assert!(!error.contains(&encoded[encoded.len() - 16..]), "{error}");
    }
    assert_eq!(delivery.last_status_code, Some(535));
    serving.abort();
    server.stop().await;
}

#[on_both]
async fn a_url_is_posted_to_as_a_whole_and_stored_encrypted(backend: Backend) {
    let (server, receiver, channel) = with_ops(backend).await;
    let Some(Kind::Webhook(hook)) = &channel.kind else { panic!("no webhook") };
    assert_eq!(hook.url, format!("http://{}/***", receiver.address));
    raise(&server).await;
    assert_eq!(receiver.wait_for(1).await[0].target, "/hook?token=in-the-url");
    assert!(!config(&server).await.contains("in-the-url"));

    // Older servers stored it in the clear.
    let db = server.database.connect().await;
    let sql = format!(
        "UPDATE notification_channels SET config = replace(CAST(config AS TEXT), '/***', '/hook?token=in-the-url'){}",
        if db.get_database_backend() == sea_orm::DbBackend::Postgres { "::jsonb" } else { "" },
    );
    db.execute_unprepared(&sql).await.unwrap();
    db.close().await.unwrap();
    assert!(config(&server).await.contains("in-the-url"));
    assert_eq!(get_channel(&server, &channel.id).await, channel);
    let database = server.stop().await;
    let server = TestServer::start_with(database, |settings| {
        settings.notification_networks = vec!["127.0.0.0/8".parse().unwrap()];
    })
    .await;
    assert!(!config(&server).await.contains("in-the-url"));
    assert_eq!(get_channel(&server, &channel.id).await, channel);
    raise(&server).await;
    assert_eq!(receiver.wait_for(2).await[1].target, "/hook?token=in-the-url");
    server.stop().await;
}
