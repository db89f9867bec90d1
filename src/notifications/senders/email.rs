//! Mail, by SMTP.

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
            attempt::{Attempted, Outcome},
            message::Message,
        },
    },
};

/// A mail server, and who gets what from whom.
pub(crate) struct Mail {
    pub host: String,
    pub port: u16,
    pub security: Security,
    pub login: Option<(String, String)>,
    pub from: String,
    pub to: Vec<String>,
    /// How long an attempt may take.
    pub timeout: Duration,
}

impl fmt::Debug for Mail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mail")
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

/// Reads an address, with or without a name.
pub(crate) fn mailbox(text: &str) -> Result<Mailbox, String> {
    text.parse()
        .map_err(|error| format!("is no mail address: {error}"))
}

/// Sends a message as a mail.
pub(crate) async fn send(mail: &Mail, message: &Message, targets: &Targets) -> Outcome {
    match timeout(mail.timeout, try_send(mail, message, targets)).await {
        Ok(outcome) => outcome,
        Err(_) => Outcome::failed(format!("not taken within {:?}", mail.timeout)),
    }
}

async fn try_send(mail: &Mail, message: &Message, targets: &Targets) -> Outcome {
    let letter = match letter(mail, message) {
        Ok(letter) => letter,
        Err(problem) => return Outcome::new(Attempted::Refused(problem), None),
    };
    // Connected to by the address that was looked at, so that the name cannot mean another one a moment later.
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
        outcome = judge(sent.map(|_| ()));
        // The next one is for when this one is not there.
        if outcome.status_code.is_some() || outcome.result == Attempted::Delivered {
            break;
        }
    }
    outcome
}

fn letter(mail: &Mail, message: &Message) -> Result<lettre::Message, String> {
    let mut letter: MessageBuilder = lettre::Message::builder()
        .from(mailbox(&mail.from)?)
        .subject(message.mail_subject())
        // The same on every attempt, so that a mail that came twice can be told.
        .message_id(Some(format!("<{}@watchpost>", message.id)));
    for to in &mail.to {
        letter = letter.to(mailbox(to)?);
    }
    letter
        .header(ContentType::TEXT_PLAIN)
        .body(message.mail_text())
        .map_err(|error| error.to_string())
}

fn transport(mail: &Mail, address: &str) -> Result<AsyncSmtpTransport<Tokio1Executor>, Error> {
    // The certificate must be that of the name.
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

/// What an answer means.
fn judge(sent: Result<(), Error>) -> Outcome {
    let Err(error) = sent else {
        return Outcome::new(Attempted::Delivered, Some(250));
    };
    // What a server calls permanent is often a password or a quota, which somebody mends.
    let code = error.status().map(u16::from).map(i32::from);
    Outcome::new(Attempted::Failed(Chain(&error).to_string()), code)
}
