//! systemd's manager over D-Bus (org.freedesktop.systemd1(5)).
//!
//! The connection lives on a thread of its own and every call has a deadline: a bus that accepts
//! and never answers must not hold a transaction up.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::pin::Pin;
use std::sync::mpsc;
use std::time::Duration;

use futures_core::Stream;
use zbus::{Connection, MatchRule, MessageStream, connection};
use zbus::{ObjectPath, OwnedObjectPath, OwnedVariant, Variant};

use super::{Result, SysError, usec};

const SERVICE: &str = "org.freedesktop.systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const JOB: &str = "org.freedesktop.systemd1.Job";
const SERVICE_UNIT: &str = "org.freedesktop.systemd1.Service";
const PATH: &str = "/org/freedesktop/systemd1";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
/// Where generators write (systemd.generator(7)).
const GENERATED: &str = "/run/systemd/generator";
const CALL: Duration = Duration::from_secs(20);

/// The answer where the bus has closed the connection.
pub const GONE: &str = "the connection to systemd is gone";

/// What systemd answers of each link: kind of change, path, what it points to.
type UnitFileChange = (String, String, String);

type Request = Box<dyn FnOnce(&Peer) + Send>;

/// A connection, and how systemd is called there.
struct Peer {
    connection: Connection,
    /// The bus name; a direct connection has none.
    name: Option<&'static str>,
    /// Whether systemd has been asked to send signals.
    subscribed: Cell<bool>,
}

impl Peer {
    async fn call<B, T>(&self, method: &'static str, body: &B) -> zbus::Result<T>
    where
        B: serde::Serialize + zbus::wire::DynamicType,
        T: for<'d> zbus::wire::DynamicDeserialize<'d>,
    {
        let reply =
            self.connection.call_method(self.name, PATH, Some(MANAGER), method, body).await?;
        reply.body().deserialize()
    }

    async fn property(
        &self,
        path: &str,
        interface: &str,
        name: &str,
    ) -> zbus::Result<OwnedVariant> {
        let body = (interface, name);
        let reply =
            self.connection.call_method(self.name, path, Some(PROPERTIES), "Get", &body).await?;
        reply.body().deserialize()
    }

    /// Asks for a job and waits until systemd has removed it; returns its result.
    async fn job<B>(&self, method: &'static str, body: &B) -> zbus::Result<String>
    where
        B: serde::Serialize + zbus::wire::DynamicType,
    {
        // Listen before asking: a fast job is removed before the reply is read.
        if !self.subscribed.get() {
            self.call::<_, ()>("Subscribe", &()).await.or_else(already_subscribed)?;
            self.subscribed.set(true);
        }
        let rule = MatchRule::builder()
            .msg_type(zbus::message::Type::Signal)
            .interface(MANAGER)
            .member("JobRemoved")
            .build()?;
        let mut removed = MessageStream::for_match_rule(rule, &self.connection, None).await?;
        let job: OwnedObjectPath = self.call(method, body).await?;
        loop {
            let next =
                std::future::poll_fn(|context| Pin::new(&mut removed).poll_next(context)).await;
            let Some(message) = next.transpose()? else {
                return Err(zbus::Error::Failure(GONE.into()));
            };
            let (_, path, _, result): (u32, OwnedObjectPath, String, String) =
                message.body().deserialize()?;
            if path == job {
                return Ok(result);
            }
        }
    }
}

/// The value of one property of a transient unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A string.
    Text(String),
    /// A list of strings.
    Texts(Vec<String>),
    /// yes or no.
    Flag(bool),
    /// Microseconds.
    Usec(u64),
    /// Permission bits.
    Mode(u32),
    /// A program with its arguments, for `ExecStart=`.
    Command(Vec<String>),
    /// Exit statuses, for `RestartPreventExitStatus=`.
    Statuses(Vec<i32>),
    /// A signal.
    Signal(i32),
    /// `OnActiveSec=` of a timer, in microseconds.
    OnActive(u64),
}

/// A property of a transient unit, by its D-Bus name.
pub type Property = (&'static str, Value);

impl Value {
    fn variant(&self) -> Variant<'static> {
        match self {
            Self::Text(text) => Variant::new(text.clone()),
            Self::Texts(texts) => Variant::new(texts.clone()),
            Self::Flag(flag) => Variant::new(*flag),
            Self::Usec(usec) => Variant::new(*usec),
            Self::Mode(mode) => Variant::new(*mode),
            Self::Command(words) => {
                let program = words.first().cloned().unwrap_or_default();
                Variant::new(vec![(program, words.clone(), false)])
            }
            Self::Signal(signal) => Variant::new(*signal),
            Self::Statuses(statuses) => Variant::new((statuses.clone(), Vec::<i32>::new())),
            Self::OnActive(usec) => Variant::new(vec![("OnActiveSec".to_owned(), *usec)]),
        }
    }
}

/// How far a service that was asked to start has come (systemd.service(5), `ExecStartPre=`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// It waits for its turn.
    Awaited,
    /// It is checked, by the process with this id.
    Checked(u32),
    /// Its main process has begun.
    Runs,
    /// It has ended.
    Over,
}

/// Properties of a unit, by name.
pub(super) type Properties = BTreeMap<String, OwnedVariant>;

/// A connection to systemd.
#[derive(Debug)]
pub struct Systemd {
    requests: mpsc::Sender<Request>,
}

/// A unit as `ListUnitsByPatterns` has it: its name first, and the id of its job the eighth.
type Row =
    (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

impl Systemd {
    /// Connects to the system bus.
    ///
    /// # Errors
    /// Where there is no bus, or it does not answer within ten seconds.
    pub fn connect() -> Result<Self> {
        Self::start("cannot reach the D-Bus system bus", Some(SERVICE), || {
            Ok(connection::Builder::system())
        })
    }

    /// Connects to systemd itself, as root, without a bus: it is there before the bus is, and stays
    /// when the bus is gone. Falls back to the system bus.
    ///
    /// # Errors
    /// Where neither answers within ten seconds.
    pub fn connect_directly() -> Result<Self> {
        let direct = Self::start("cannot reach systemd", None, || {
            Ok(connection::Builder::unix_stream(super::direct::connect()?).p2p())
        });
        direct.or_else(|error| {
            tracing::debug!(%error, "going over the bus");
            Self::connect()
        })
    }

    fn start(
        what: &'static str,
        name: Option<&'static str>,
        open: impl FnOnce() -> std::io::Result<connection::Builder<'static>> + Send + 'static,
    ) -> Result<Self> {
        let (requests, inbox) = mpsc::channel::<Request>();
        let (ready, connected) = mpsc::channel();
        std::thread::spawn(move || {
            let built = open()
                .map_err(zbus::Error::from)
                .and_then(|builder| zbus::block_on(builder.method_timeout(CALL).build()));
            match built {
                Ok(connection) => {
                    let _ = ready.send(Ok(()));
                    let peer = Peer { connection, name, subscribed: Cell::new(false) };
                    for request in inbox {
                        request(&peer);
                    }
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            }
        });
        match connected.recv_timeout(Duration::from_secs(10)) {
            Ok(Ok(())) => Ok(Self { requests }),
            Ok(Err(error)) => Err(SysError::new(what, error)),
            Err(_) => Err(SysError::new(what, "no answer in 10 s")),
        }
    }

    /// Runs `work` on the connection's thread and waits for its answer, at most `limit`.
    fn ask<T: Send + 'static>(
        &self,
        what: &str,
        limit: Duration,
        work: impl FnOnce(&Peer) -> zbus::Result<T> + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = mpsc::channel();
        let request: Request = Box::new(move |peer| {
            let _ = reply.send(work(peer));
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
        B: serde::Serialize + zbus::wire::DynamicType + Send + Sync + 'static,
        T: for<'d> zbus::wire::DynamicDeserialize<'d> + Send + 'static,
    {
        self.ask(what, CALL, move |peer| zbus::block_on(peer.call(method, &body)))
    }

    /// All properties of a unit, those of its type (`Service`, `Socket`) among them.
    ///
    /// A unit that does not exist has `LoadState` `not-found`; that is no error.
    pub(super) fn properties(&self, unit: &str) -> Result<Properties> {
        let unit = unit.to_owned();
        self.ask(&format!("cannot read the state of {unit}"), CALL, move |peer| {
            zbus::block_on(async {
                let path: OwnedObjectPath = peer.call("LoadUnit", &unit).await?;
                let reply = peer
                    .connection
                    .call_method(peer.name, &path, Some(PROPERTIES), "GetAll", &"")
                    .await?;
                reply.body().deserialize()
            })
        })
    }

    /// Whether the whole system is going down (`SystemState`, org.freedesktop.systemd1(5)).
    pub fn is_stopping(&self) -> Result<bool> {
        self.ask("cannot read the state of the system", CALL, move |peer| {
            zbus::block_on(async {
                let state = peer.property(PATH, MANAGER, "SystemState").await?;
                Ok(state.downcast_ref::<&str>().ok() == Some("stopping"))
            })
        })
    }

    /// When systemd's generators last ran, in microseconds since the epoch: as it says itself
    /// (`GeneratorsFinishTimestamp`; version 252 says so of the boot alone), and as the folder shows that it makes
    /// anew each time.
    pub fn generated(&self) -> Result<u64> {
        let made = std::fs::metadata(GENERATED).map(|meta| usec(meta.mtime(), meta.mtime_nsec()));
        let told = self.ask("cannot read when the generators ran", CALL, move |peer| {
            zbus::block_on(async {
                let time = peer.property(PATH, MANAGER, "GeneratorsFinishTimestamp").await?;
                Ok(time.downcast_ref::<u64>().unwrap_or_default())
            })
        });
        Ok(told?.max(made.unwrap_or_default()))
    }

    /// Names of the loaded units in a state (`ActiveState`) that match any of the glob patterns.
    pub fn units(&self, state: &str, patterns: &[&str]) -> Result<Vec<String>> {
        Ok(self.rows(state, patterns)?.into_iter().map(|row| row.0).collect())
    }

    /// Names of the units that are starting, and whose start systemd waits for (they have a job): one that is started
    /// again after a while has none meanwhile.
    pub fn starting(&self) -> Result<Vec<String>> {
        let rows = self.rows("activating", &["*"])?.into_iter();
        Ok(rows.filter(|row| row.7 != 0).map(|row| row.0).collect())
    }

    fn rows(&self, state: &str, patterns: &[&str]) -> Result<Vec<Row>> {
        let patterns: Vec<String> = patterns.iter().map(|&pattern| pattern.into()).collect();
        self.call("cannot list units", "ListUnitsByPatterns", (vec![state.to_owned()], patterns))
    }

    /// Runs a job (`StartUnit`, `StopUnit`, `RestartUnit`) and waits until systemd removed it.
    ///
    /// Returns the job's result: `done`, `canceled`, `timeout`, `failed`, `dependency`, `skipped`.
    /// A job's success is not a running unit; read its state again.
    pub fn job(&self, method: &'static str, unit: &str, limit: Duration) -> Result<String> {
        let what = format!("cannot {} {unit}", method.trim_end_matches("Unit").to_lowercase());
        let unit = unit.to_owned();
        self.ask(&what, limit, move |peer| {
            zbus::block_on(peer.job(method, &(unit.as_str(), "replace")))
        })
    }

    /// Asks for a job and does not wait for it: at boot it may have to wait for the asker itself.
    pub fn enqueue(&self, method: &'static str, unit: &str) -> Result<()> {
        let what = format!("cannot {} {unit}", method.trim_end_matches("Unit").to_lowercase());
        let _: OwnedObjectPath = self.call(&what, method, (unit.to_owned(), "replace"))?;
        Ok(())
    }

    /// What a job is to do (`start`, `stop`, ...); nothing where it is over.
    pub(super) fn job_type(&self, path: &str) -> Result<String> {
        let path = path.to_owned();
        self.ask("cannot read what systemd is about to do", CALL, move |peer| {
            zbus::block_on(async {
                match peer.property(&path, JOB, "JobType").await {
                    Ok(kind) => Ok(kind.downcast_ref::<&str>()?.to_owned()),
                    // It is over.
                    Err(error) if is(&error, "UnknownObject") => Ok(String::new()),
                    Err(error) => Err(error),
                }
            })
        })
    }

    /// Cancels what systemd is about to do with a unit; what it does already goes on.
    pub fn cancel_job(&self, unit: &str) -> Result<()> {
        let what = format!("cannot call off what is to become of {unit}");
        let unit = unit.to_owned();
        self.ask(&what, CALL, move |peer| {
            zbus::block_on(async {
                let path: OwnedObjectPath = peer.call("LoadUnit", &unit).await?;
                let job = peer.property(&path, UNIT, "Job").await?;
                let (id, _) = job.downcast_ref::<(u32, ObjectPath)>()?;
                if id == 0 {
                    return Ok(());
                }
                match peer.call::<_, ()>("CancelJob", &id).await {
                    // It is over.
                    Err(error) if is(&error, "NoSuchJob") => Ok(()),
                    other => other,
                }
            })
        })
    }

    /// How far a service that was asked to start has come.
    pub fn start_of(&self, unit: &str) -> Result<Start> {
        let unit = unit.to_owned();
        self.ask(&format!("cannot read the state of {unit}"), CALL, move |peer| {
            zbus::block_on(async {
                let path: OwnedObjectPath = peer.call("LoadUnit", &unit).await?;
                // In this order: a job that is gone has left its mark on the state.
                let job = peer.property(&path, UNIT, "Job").await?;
                let state = peer.property(&path, UNIT, "SubState").await?;
                let control = peer.property(&path, SERVICE_UNIT, "ControlPID").await?;
                Ok(match (state.downcast_ref::<&str>()?, control.downcast_ref::<u32>()?) {
                    ("start" | "start-post" | "running", _) => Start::Runs,
                    ("start-pre", check) if check != 0 => Start::Checked(check),
                    _ if job.downcast_ref::<(u32, ObjectPath)>()?.0 != 0 => Start::Awaited,
                    _ => Start::Over,
                })
            })
        })
    }

    /// Makes a unit that exists until it has ended, or until the next boot, and starts it
    /// (`StartTransientUnit`); `triggered` is a second one that the first starts.
    ///
    /// Returns the job's result, as [`Systemd::job`] does.
    pub fn start_transient(
        &self,
        unit: &str,
        properties: &[Property],
        triggered: Option<(&str, &[Property])>,
        limit: Duration,
    ) -> Result<String> {
        type Named = (String, Vec<(String, Variant<'static>)>);
        let named = |unit: &str, properties: &[Property]| -> Named {
            let values = properties.iter().map(|(name, value)| ((*name).into(), value.variant()));
            (unit.to_owned(), values.collect())
        };
        let (name, values) = named(unit, properties);
        let others: Vec<Named> =
            triggered.into_iter().map(|(unit, values)| named(unit, values)).collect();
        self.ask(&format!("cannot start {unit}"), limit, move |peer| {
            zbus::block_on(peer.job("StartTransientUnit", &(name, "fail", values, others)))
        })
    }

    /// Sends a signal to a unit's main process (`KillUnit`).
    pub fn kill(&self, unit: &str, signal: i32) -> Result<()> {
        let body = (unit.to_owned(), "main".to_owned(), signal);
        self.call::<_, ()>(&format!("cannot signal {unit}"), "KillUnit", body)
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
        self.ask("cannot reload systemd's units", Duration::from_secs(90), |peer| {
            zbus::block_on(peer.call("Reload", &()))
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
    if is(&error, "AlreadySubscribed") { Ok(()) } else { Err(error) }
}

/// Whether an answer is this error, by the last part of its name; for those of the bus zbus has a type of its own.
fn is(error: &zbus::Error, name: &str) -> bool {
    let text = error.to_string();
    let first = text.split([':', ' ']).next().unwrap_or_default();
    first.rsplit('.').next() == Some(name)
}

fn text_of(error: &zbus::Error) -> String {
    match error {
        // So says a bus of somebody who has gone, of systemd too while it is executed anew.
        error if is(error, "NoReply") => GONE.to_owned(),
        zbus::Error::MethodError(name, text, _) => text.clone().unwrap_or_else(|| name.to_string()),
        // A call without an answer counts as one that nobody heard.
        zbus::Error::InputOutput(_) => GONE.to_owned(),
        zbus::Error::Failure(text) => text.clone(),
        other => other.to_string(),
    }
}
