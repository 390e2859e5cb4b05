//! systemd's manager over D-Bus (org.freedesktop.systemd1(5)).
//!
//! The connection lives on a thread of its own and every call has a deadline: a bus that accepts
//! and never answers must not hold a transaction up.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::mpsc;
use std::time::Duration;

use futures_core::Stream;
use zbus::{Connection, MatchRule, MessageStream, connection};
use zbus::{OwnedObjectPath, OwnedVariant};

use super::{Result, SysError};

const SERVICE: &str = "org.freedesktop.systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const PATH: &str = "/org/freedesktop/systemd1";
const CALL: Duration = Duration::from_secs(20);

/// The answer where the bus has closed the connection.
pub const GONE: &str = "the connection to systemd is gone";

/// What systemd answers of each link: kind of change, path, what it points to.
type UnitFileChange = (String, String, String);

type Request = Box<dyn FnOnce(&Connection) + Send>;

/// Properties of a unit, by name.
pub(super) type Properties = BTreeMap<String, OwnedVariant>;

/// A connection to systemd on the system bus.
#[derive(Debug)]
pub struct Systemd {
    requests: mpsc::Sender<Request>,
}

impl Systemd {
    /// Connects to the system bus.
    ///
    /// # Errors
    /// Where there is no bus, or it does not answer within ten seconds.
    pub fn connect() -> Result<Self> {
        let (requests, inbox) = mpsc::channel::<Request>();
        let (ready, connected) = mpsc::channel();
        std::thread::spawn(move || {
            let built = zbus::block_on(connection::Builder::system().method_timeout(CALL).build());
            match built {
                Ok(connection) => {
                    let _ = ready.send(Ok(()));
                    for request in inbox {
                        request(&connection);
                    }
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            }
        });
        match connected.recv_timeout(Duration::from_secs(10)) {
            Ok(Ok(())) => Ok(Self { requests }),
            Ok(Err(error)) => Err(SysError::new("cannot reach the D-Bus system bus", error)),
            Err(_) => Err(SysError::new("cannot reach the D-Bus system bus", "no answer in 10 s")),
        }
    }

    /// Runs `work` on the connection's thread and waits for its answer, at most `limit`.
    fn ask<T: Send + 'static>(
        &self,
        what: &str,
        limit: Duration,
        work: impl FnOnce(&Connection) -> zbus::Result<T> + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = mpsc::channel();
        let request: Request = Box::new(move |connection| {
            let _ = reply.send(work(connection));
        });
        let gone = || SysError::new(what, GONE);
        self.requests.send(request).map_err(|_| gone())?;
        match answer.recv_timeout(limit) {
            Ok(result) => result.map_err(|error| SysError::new(what, text_of(&error))),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                Err(SysError::new(what, format!("no answer in {} s", limit.as_secs())))
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(gone()),
        }
    }

    fn call<B, T>(&self, what: &str, method: &'static str, body: B) -> Result<T>
    where
        B: serde::Serialize + zbus::zvariant::DynamicType + Send + 'static,
        T: for<'d> zbus::zvariant::DynamicDeserialize<'d> + Send + 'static,
    {
        self.ask(what, CALL, move |connection| {
            zbus::block_on(async {
                let reply = connection
                    .call_method(Some(SERVICE), PATH, Some(MANAGER), method, &body)
                    .await?;
                reply.body().deserialize()
            })
        })
    }

    /// All properties of a unit, those of its type (`Service`, `Socket`) among them.
    ///
    /// A unit that does not exist has `LoadState` `not-found`; that is no error.
    pub(super) fn properties(&self, unit: &str) -> Result<Properties> {
        let unit = unit.to_owned();
        self.ask(&format!("cannot read the state of {unit}"), CALL, move |connection| {
            zbus::block_on(async {
                let reply = connection
                    .call_method(Some(SERVICE), PATH, Some(MANAGER), "LoadUnit", &unit)
                    .await?;
                let path: OwnedObjectPath = reply.body().deserialize()?;
                let reply = connection
                    .call_method(
                        Some(SERVICE),
                        &path,
                        Some("org.freedesktop.DBus.Properties"),
                        "GetAll",
                        &"",
                    )
                    .await?;
                reply.body().deserialize()
            })
        })
    }

    /// Names of the loaded, active units that match any of the glob patterns.
    pub fn active_units(&self, patterns: &[&str]) -> Result<Vec<String>> {
        type Row = (
            String,
            String,
            String,
            String,
            String,
            String,
            OwnedObjectPath,
            u32,
            String,
            OwnedObjectPath,
        );
        let patterns: Vec<String> = patterns.iter().map(|&pattern| pattern.into()).collect();
        let rows: Vec<Row> = self.call(
            "cannot list units",
            "ListUnitsByPatterns",
            (vec!["active".to_owned()], patterns),
        )?;
        Ok(rows.into_iter().map(|row| row.0).collect())
    }

    /// Runs a job (`StartUnit`, `StopUnit`, `RestartUnit`) and waits until systemd removed it.
    ///
    /// Returns the job's result: `done`, `canceled`, `timeout`, `failed`, `dependency`, `skipped`.
    /// A job's success is not a running unit; read its state again.
    pub fn job(&self, method: &'static str, unit: &str, limit: Duration) -> Result<String> {
        let what = format!("cannot {} {unit}", method.trim_end_matches("Unit").to_lowercase());
        let unit = unit.to_owned();
        self.ask(&what, limit, move |connection| {
            zbus::block_on(async {
                // Listen before asking: a fast job is removed before the reply is read.
                connection
                    .call_method(Some(SERVICE), PATH, Some(MANAGER), "Subscribe", &())
                    .await
                    .map(drop)
                    .or_else(already_subscribed)?;
                let rule = MatchRule::builder()
                    .msg_type(zbus::message::Type::Signal)
                    .sender(SERVICE)
                    .interface(MANAGER)
                    .member("JobRemoved")
                    .build()?;
                let mut removed = MessageStream::for_match_rule(rule, connection, None).await?;
                let reply = connection
                    .call_method(Some(SERVICE), PATH, Some(MANAGER), method, &(&unit, "replace"))
                    .await?;
                let job: OwnedObjectPath = reply.body().deserialize()?;
                loop {
                    let next =
                        std::future::poll_fn(|context| Pin::new(&mut removed).poll_next(context))
                            .await;
                    let Some(message) = next.transpose()? else {
                        return Err(zbus::Error::Failure("the bus closed the connection".into()));
                    };
                    let (_, path, _, result): (u32, OwnedObjectPath, String, String) =
                        message.body().deserialize()?;
                    if path == job {
                        return Ok(result);
                    }
                }
            })
        })
    }

    /// Enables a unit file (`EnableUnitFiles`, persistent, no force).
    pub fn enable(&self, unit: &str) -> Result<()> {
        let (_, _): (bool, Vec<UnitFileChange>) = self.call(
            &format!("cannot enable {unit}"),
            "EnableUnitFiles",
            (vec![unit.to_owned()], false, false),
        )?;
        Ok(())
    }

    /// Disables a unit file (`DisableUnitFiles`, persistent).
    pub fn disable(&self, unit: &str) -> Result<()> {
        self.unlink(&format!("cannot disable {unit}"), "DisableUnitFiles", unit)
    }

    /// Unmasks a unit file (`UnmaskUnitFiles`, persistent).
    pub fn unmask(&self, unit: &str) -> Result<()> {
        self.unlink(&format!("cannot unmask {unit}"), "UnmaskUnitFiles", unit)
    }

    fn unlink(&self, what: &str, method: &'static str, unit: &str) -> Result<()> {
        let _: Vec<UnitFileChange> = self.call(what, method, (vec![unit.to_owned()], false))?;
        Ok(())
    }

    /// Reads all unit files again and runs the generators (`Reload`).
    pub fn reload(&self) -> Result<()> {
        self.ask("cannot reload systemd's units", Duration::from_secs(90), |connection| {
            zbus::block_on(async {
                connection
                    .call_method(Some(SERVICE), PATH, Some(MANAGER), "Reload", &())
                    .await
                    .map(drop)
            })
        })
    }

    /// Clears a unit's failed state and its start counter (`ResetFailedUnit`).
    pub fn reset_failed(&self, unit: &str) -> Result<()> {
        self.call::<_, ()>(
            &format!("cannot reset the failed state of {unit}"),
            "ResetFailedUnit",
            unit.to_owned(),
        )
    }
}

fn already_subscribed(error: zbus::Error) -> zbus::Result<()> {
    match &error {
        zbus::Error::MethodError(name, ..) if name.ends_with(".AlreadySubscribed") => Ok(()),
        _ => Err(error),
    }
}

fn text_of(error: &zbus::Error) -> String {
    match error {
        zbus::Error::MethodError(name, text, _) => text.clone().unwrap_or_else(|| name.to_string()),
        other => other.to_string(),
    }
}
