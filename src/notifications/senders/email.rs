//! Delivery of messages by mail.

use std::{fmt, time::Duration};

use lettre::{
    AsyncSmtpTransport, AsyncTransport, Tokio1Executor,
    message::{Mailbox, MessageBuilder, header::ContentType},
    transport::smtp::{
        Error,
        authentication::Credentials,
        client::{Tls, TlsParameters},
    },
};
use tokio::time::timeout;

use crate::{
    entity::notification_channel::Security,
    error::Chain,
    notifications::{
        Targets,
        delivery::{
            message::Message,
            outcome::{AttemptResult, Outcome},
        },
    },
};

/// Mail server, sender and recipients of a channel.
pub(crate) struct Mail {
    pub host: String,
    pub port: u16,
    pub security: Security,
    pub login: Option<(String, String)>,
    pub from: String,
    pub to: Vec<String>,
    /// Time limit of an attempt.
    pub timeout: Duration,
}

impl fmt::Debug for Mail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mail").field("host", &self.host).finish_non_exhaustive()
    }
}

/// Parses a mail address with or without a name.
pub(crate) fn mailbox(text: &str) -> Result<Mailbox, String> {
    text.parse().map_err(|error| format!("is no mail address: {error}"))
}

/// Sends a message as a mail within the time limit.
pub(crate) async fn send_mail(mail: &Mail, message: &Message, targets: &Targets) -> Outcome {
    match timeout(mail.timeout, send_to_addresses(mail, message, targets)).await {
        Ok(outcome) => outcome,
        Err(_) => Outcome::failed(format!("not taken within {:?}", mail.timeout)),
    }
}

async fn send_to_addresses(mail: &Mail, message: &Message, targets: &Targets) -> Outcome {
    let letter = match mail_message(mail, message) {
        Ok(letter) => letter,
        Err(problem) => return Outcome::new(AttemptResult::Refused(problem), None),
    };
    // The connection uses the checked address. The name could resolve to another address later.
    let addresses = match targets.resolve(&mail.host, mail.port).await {
        Ok(addresses) => addresses,
        Err(problem) => return Outcome::failed(problem),
    };
    let mut outcome = Outcome::failed("the mail server has no address");
    for address in addresses {
        let sent = match transport(mail, &address.ip().to_string()) {
            Ok(transport) => transport.send(letter.clone()).await,
            Err(error) => Err(error),
        };
        outcome = outcome_of(sent.map(|_| ()));
        // Further addresses are for an unreachable server only.
        if outcome.status_code.is_some() || outcome.result == AttemptResult::Delivered {
            break;
        }
    }
    outcome
}

fn mail_message(mail: &Mail, message: &Message) -> Result<lettre::Message, String> {
    let mut builder: MessageBuilder = lettre::Message::builder()
        .from(mailbox(&mail.from)?)
        .subject(message.mail_subject())
        // Equal on every attempt, so mail programs can detect a duplicate.
        .message_id(Some(format!("<{}@watchpost>", message.id)));
    for to in &mail.to {
        builder = builder.to(mailbox(to)?);
    }
    builder.header(ContentType::TEXT_PLAIN).body(message.mail_text()).map_err(|error| error.to_string())
}

fn transport(mail: &Mail, address: &str) -> Result<AsyncSmtpTransport<Tokio1Executor>, Error> {
    // The certificate must match the name.
    let parameters = || TlsParameters::builder(mail.host.clone()).build_rustls();
    let tls = match mail.security {
        Security::Starttls => Tls::Required(parameters()?),
        Security::Tls => Tls::Wrapper(parameters()?),
        Security::None => Tls::None,
    };
    let mut transport = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(address)
        .port(mail.port)
        .tls(tls)
        .timeout(Some(mail.timeout));
    if let Some((username, password)) = &mail.login {
        transport = transport.credentials(Credentials::new(username.clone(), password.clone()));
    }
    Ok(transport.build())
}

/// Outcome of the answer of the server.
fn outcome_of(sent: Result<(), Error>) -> Outcome {
    let Err(error) = sent else {
        return Outcome::new(AttemptResult::Delivered, Some(250));
    };
    // Even a permanent error is retried: the cause is often a password or a quota, and somebody can correct either.
    let code = error.status().map(u16::from).map(i32::from);
    Outcome::new(AttemptResult::Failed(Chain(&error).to_string()), code)
}
