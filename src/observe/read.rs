//! Looking: files, units and the kernel's socket table, read into an [`Observed`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::ask::{Ahead, Said, answer, ask_sshd, sshd_program};
use super::listeners::listeners;
use super::stale::{is_stale, read_at};
use super::untried::{Untried, untried};
use super::{CommandLine, MAIN_CONFIG, NOT_TO_BE_RUN, Observed, UNIT_FOLDER, Verdict, template};
use crate::error::{Error, Refusal};
use crate::sshd::release::Release;
use crate::sshd::tree::{absolute, spelt_out};
use crate::sshd::{ConfigFile, ConfigTree, options, syntax};
use crate::sys::process::{self, Process};
use crate::sys::systemd::Systemd;
use crate::sys::units::Unit;
use crate::sys::{self, Files, Image};

/// Looks at the host.
///
/// # Errors
/// Where there is no systemd, no D-Bus or no sshd, or the system cannot be read.
pub fn observe(files: &Files, systemd: &Systemd, ahead: Ahead) -> Result<Observed, Error> {
    let (service, socket) = units(systemd)?;
    let listeners = listeners(systemd, &service, &socket)?;
    let mut unseen = Vec::new();
    let Said { release, algorithms, verdict, had_folder } = ahead.said();
    let config = config_tree(files, &release, &mut unseen);
    let command_line = command_line_of(files, &service);
    let unit_files = unit_files(files, [&service, &socket]);
    let dependents = dependents(systemd, [&service, &socket])?;
    let lingering = lingering(files, systemd, &socket)?;
    let instance = instance(systemd, &socket)?;
    let lost_needs = lost_needs(systemd, [&service, &socket], instance.as_ref())?;
    let pulled_in_by = pulled_in_by(files, systemd, &socket)?;
    let awaited = awaited(systemd, [&service, &socket])?;
    let other_program = other_program(&service);
    let behind = instance.as_ref().map(|instance| (instance, self::unit_files(files, [instance])));
    let untried = untried_of(files, &unit_files, [&service, &socket], behind.as_ref());
    // Options on sshd's command line are rare; where there are some, it is asked again.
    let effective = match command_line.settings().as_slice() {
        [] => answer(verdict),
        settings => ask_sshd(None, settings),
    };
    if let Verdict::Unseen(why) = &effective {
        unseen.push(format!("the effective configuration: {why}"));
    }
    if !sys::is_root() {
        unseen.push("which processes hold the listening sockets: that needs root".to_owned());
    }
    Ok(Observed {
        host: sys::hostname(),
        os: sys::os_name(),
        ipv6: sys::has_ipv6(),
        addresses: sys::addresses(),
        stale: is_stale(files, &config, &command_line, &service),
        read: read_at(files, &service),
        missing_folders: missing_folders(files, &config, &socket),
        seen_otherwise: seen_otherwise(files, &config, &service),
        not_to_be_run: files.exists(Path::new(NOT_TO_BE_RUN)),
        links: links(files, &unit_files, [&service, &socket]),
        release,
        algorithms,
        config,
        effective,
        command_line,
        service,
        socket,
        dependents,
        lingering,
        lost_needs,
        untried,
        awaited,
        template_files: behind.map(|(_, texts)| without_own(texts)).unwrap_or_default(),
        other_program,
        per_connection: instance.as_ref().map(|instance| command_line_of(files, instance)),
        had_run_folder: had_folder,
        pulled_in_by,
        unit_files,
        listeners,
        unseen,
    })
}

/// Makes sure that there are systemd and sshd at all.
///
/// # Errors
/// A refusal that says where to run harden, or what to install.
pub fn check_host() -> Result<(), Refusal> {
    if !sys::booted_with_systemd() {
        return Err(Refusal::new(
            "no-systemd",
            "this system was not started by systemd (no /run/systemd/system)",
            "harden manages ssh.service and ssh.socket; run it on the host itself, not in a \
             container without systemd",
        ));
    }
    if sshd_program().is_none() {
        return Err(Refusal::new(
            "no-sshd",
            "there is no /usr/sbin/sshd",
            "install it first: apt install openssh-server",
        ));
    }
    Ok(())
}

/// Makes sure that the proof can be made: with the system's own client.
///
/// # Errors
/// A refusal that says what to install.
pub fn check_clients() -> Result<(), Refusal> {
    let missing = ["/usr/bin/ssh", "/usr/bin/ssh-keygen"];
    let Some(missing) = missing.into_iter().find(|path| sys::find_program(&[path]).is_none())
    else {
        return Ok(());
    };
    Err(Refusal::new(
        "no-ssh-client",
        format!("there is no {missing}, with which harden proves the new listener"),
        "install it first: apt install openssh-client",
    ))
}

/// Connects to systemd, or says what is missing.
///
/// # Errors
/// A refusal that names what to install or start.
pub fn connect() -> Result<Systemd, Refusal> {
    Systemd::connect().map_err(|error| no_bus(&error))
}

/// There is no way to systemd: what to install or start.
pub fn no_bus(error: &sys::SysError) -> Refusal {
    Refusal::new(
        "no-dbus",
        error.to_string(),
        "harden talks to systemd over the system bus: apt install dbus, systemctl start \
         dbus.socket",
    )
}

fn units(systemd: &Systemd) -> Result<(Unit, Unit), Error> {
    // Debian's and Ubuntu's name first: there, sshd.service is an alias that enabling makes.
    for stem in ["ssh", "sshd"] {
        let service = Unit::read(systemd, &format!("{stem}.service"))?;
        if service.exists() {
            let socket = Unit::read(systemd, &format!("{stem}.socket"))?;
            return Ok((service, socket));
        }
    }
    Err(Refusal::new(
        "no-ssh-service",
        "systemd knows neither ssh.service nor sshd.service",
        "install the distribution's package: apt install openssh-server",
    )
    .into())
}

/// Units beside the two that run, and that stop with one of them, or with one of these. (harden's own go their
/// own ways.)
fn dependents(systemd: &Systemd, units: [&Unit; 2]) -> Result<Vec<String>, Error> {
    let mut dependents = Vec::new();
    let mut waiting: std::collections::VecDeque<String> =
        units.iter().flat_map(|unit| unit.takes_along.clone()).collect();
    while let Some(name) = waiting.pop_front() {
        let is_own = name.starts_with("harden") || units.iter().any(|unit| unit.name == name);
        if is_own || dependents.contains(&name) {
            continue;
        }
        let unit = Unit::read(systemd, &name)?;
        if unit.is_up() {
            dependents.push(name);
            waiting.extend(unit.takes_along);
        }
    }
    Ok(dependents)
}

/// Units that start just now, and after which one of the two would: harden may be part of one, and wait for itself.
fn awaited(systemd: &Systemd, units: [&Unit; 2]) -> Result<Vec<String>, Error> {
    let mut starting = systemd.starting()?;
    starting.retain(|name| {
        units.iter().any(|unit| unit.after.contains(name))
            && units.iter().all(|unit| unit.name != *name)
    });
    Ok(starting)
}

/// Without these a start fails (systemd.unit(5), `Requires=`; systemd.socket(5), `Service=`).
fn lost_needs(
    systemd: &Systemd,
    units: [&Unit; 2],
    instance: Option<&Unit>,
) -> Result<Vec<(String, String)>, Error> {
    let mut lost = Vec::new();
    for unit in units {
        for name in unit.requires.iter().chain(&unit.triggers) {
            let needed = Unit::read(systemd, name)?;
            if !needed.exists() || needed.is_masked() {
                lost.push((unit.name.clone(), name.clone()));
            }
        }
    }
    let is_lost = |unit: &&Unit| !unit.exists() || unit.is_masked() || unit.is_broken();
    if instance.filter(is_lost).is_some() {
        let [_, socket] = units;
        lost.push((socket.name.clone(), template(&socket.name)));
    }
    Ok(lost)
}

/// What a socket with `Accept=yes` would start for the next connection.
fn instance(systemd: &Systemd, socket: &Unit) -> Result<Option<Unit>, Error> {
    let name = socket.name.replace(".socket", "@harden.service");
    Ok(if socket.accept { Some(Unit::read(systemd, &name)?) } else { None })
}

/// What the service and the template would do to their sshd, and have done to none so far.
fn untried_of(
    files: &Files,
    texts: &BTreeMap<PathBuf, ConfigFile>,
    [service, socket]: [&Unit; 2],
    behind: Option<&(&Unit, BTreeMap<PathBuf, ConfigFile>)>,
) -> Vec<Untried> {
    let mut found = untried(files, service, texts, !socket.is_active());
    // People come in by it now, each by an sshd of their own.
    let behind = behind.filter(|_| !socket.is_active());
    found.extend(behind.into_iter().flat_map(|(instance, texts)| {
        let found = untried(files, instance, texts, false);
        found.into_iter().map(|found| Untried { unit: template(&socket.name), ..found })
    }));
    found
}

/// Sessions of a socket with `Accept=yes`, which may outlive it, where no drop-in has them spare sshd's folder.
fn lingering(files: &Files, systemd: &Systemd, socket: &Unit) -> Result<Vec<String>, Error> {
    let drop_in = sessions_drop_in(&socket.name);
    if !socket.accept || files.exists(&drop_in) {
        return Ok(Vec::new());
    }
    Ok(systemd.units("active", &[&socket.name.replace(".socket", "@*.service")])?)
}

/// Files in which it stands that a unit is pulled in; links are no such files.
fn pulled_in_by(files: &Files, systemd: &Systemd, unit: &Unit) -> Result<Vec<PathBuf>, Error> {
    const PULLS: [&str; 4] = ["Wants", "Requires", "BindsTo", "Upholds"];
    let mut found = Vec::new();
    for by in &unit.wanted_by {
        let by = Unit::read(systemd, by)?;
        found.extend(unit_files(files, [&by]).into_values().filter(|file| {
            let mut lines = crate::sys::units::directives(&file.text).into_iter();
            lines.any(|(key, value)| PULLS.contains(&key) && value == unit.name)
        }));
    }
    Ok(found.into_iter().map(|file| file.path).collect())
}

/// Reads every file that a release of sshd would read, and says what could not be read.
pub fn config_tree(files: &Files, release: &Release, unseen: &mut Vec<String>) -> ConfigTree {
    let mut tree = ConfigTree { main: MAIN_CONFIG.into(), ..ConfigTree::default() };
    let mut waiting = std::collections::VecDeque::from([tree.main.clone()]);
    while let Some(path) = waiting.pop_front() {
        if tree.file(&path).is_some() {
            continue;
        }
        let Some(file) = read_config(files, &path, unseen) else { continue };
        let directives = syntax::lines(&file.text, release)
            .filter_map(|(_, line)| syntax::read_line(&line, release).ok().flatten());
        for directive in directives.filter(|line| line.is("Include")) {
            for pattern in directive.args {
                let pattern = absolute(&pattern);
                let found = files.glob(&spelt_out(&pattern));
                waiting.extend(found.iter().cloned());
                tree.includes.insert(pattern, found);
            }
        }
        tree.files.push(file);
    }
    tree
}

fn read_config(files: &Files, path: &Path, unseen: &mut Vec<String>) -> Option<ConfigFile> {
    let real = files.resolve(path);
    match files.image(&real) {
        Ok(Image::File { content, meta }) => {
            let text = String::from_utf8(content).unwrap_or_else(|error| {
                unseen.push(format!("{}: it is not UTF-8", path.display()));
                String::from_utf8_lossy(error.as_bytes()).into_owned()
            });
            Some(ConfigFile { path: path.to_owned(), real, text, meta })
        }
        Ok(_) => None,
        Err(error) => {
            unseen.push(format!("{} ({})", path.display(), error.answer));
            None
        }
    }
}

/// The texts of the files of a template, without harden's own.
fn without_own(texts: BTreeMap<PathBuf, ConfigFile>) -> BTreeMap<PathBuf, String> {
    let own = |path: &Path| path.starts_with("/run") && path.ends_with("zz-harden.conf");
    let texts = texts.into_iter().filter(|(path, _)| !own(path));
    texts.map(|(path, file)| (path, file.text)).collect()
}

/// The sshd that a service runs, or would run, where harden asks another one: a build of somebody's own reads other
/// files, or reads them otherwise. What starts sshd in its turn is known by what runs.
fn other_program(service: &Unit) -> Option<PathBuf> {
    let asked = sshd_program()?.canonicalize().ok()?;
    let running = (service.main_pid > 1).then(|| process::program(service.main_pid)).flatten();
    let named = || service.exec_start.first().map(PathBuf::from).filter(|path| path.is_absolute());
    let program = running.or_else(named).filter(|path| path.ends_with("sshd"))?;
    let program = program.canonicalize().unwrap_or(program);
    (program != asked).then_some(program)
}

/// The command line with which a unit starts sshd. A variable has the value of the last file that sets it, else that
/// of the unit itself (systemd.exec(5), `EnvironmentFile=`).
fn command_line_of(files: &Files, unit: &Unit) -> CommandLine {
    let mut line = CommandLine { running: running_words(unit.main_pid), ..CommandLine::default() };
    for word in unit.exec_start.iter().skip(1) {
        let variable = word.strip_prefix('$').map(|name| name.trim_matches(['{', '}']));
        let Some(variable) = variable else {
            line.fixed.push(word.clone());
            continue;
        };
        let set = |path: &PathBuf| {
            let file = read_config(files, path, &mut Vec::new())?;
            Some((options::variable(&file.text, variable)?, file))
        };
        let mut assigned = unit.environment.iter().filter_map(|pair| pair.split_once('='));
        match unit.environment_files.iter().rev().find_map(set) {
            Some((found, file)) if found.plain && is_changeable(&file) && line.words.is_empty() => {
                variable.clone_into(&mut line.variable);
                line.words = found.words();
                line.file = Some(file);
            }
            // Quotes inside, several lines, a second variable, a file of the distribution's (the
            // crypto policy): understood, but not for harden to rewrite.
            Some((found, _)) => line.fixed.extend(found.words()),
            None => {
                if let Some((_, value)) = assigned.rfind(|(name, _)| *name == variable) {
                    line.fixed.extend(value.split_whitespace().map(str::to_owned));
                }
            }
        }
    }
    line
}

/// Whether a file is the administrator's: a link may lead to one that the next update replaces.
fn is_changeable(file: &ConfigFile) -> bool {
    file.real.starts_with("/etc")
}

/// The words of the running sshd, from the title that it gives itself:
/// `sshd: /usr/sbin/sshd -D [listener] 0 of 10-100 startups`.
fn running_words(main_pid: u32) -> Vec<String> {
    let Some(process) = (main_pid > 1).then(|| Process::read(main_pid)).flatten() else {
        return Vec::new();
    };
    let title = process.args.join(" ");
    let title = title.strip_prefix("sshd: ").unwrap_or(&title);
    let words = title.split(" [listener]").next().unwrap_or(title);
    options::shown(words).into_iter().skip(1).collect()
}

/// Files that the running sshd sees otherwise: in a mount namespace of its own another may lie there
/// (`BindPaths=`, systemd.exec(5)).
fn seen_otherwise(files: &Files, config: &ConfigTree, service: &Unit) -> Vec<PathBuf> {
    let Some(root) = process::other_root(service.main_pid) else { return Vec::new() };
    let there = |path: &Path| Some(root.join(path.strip_prefix("/").ok()?));
    let differs = |file: &&ConfigFile| {
        let read = |path: &Path| files.read(path).ok().flatten();
        there(&file.real).and_then(|path| read(&path)) != read(&file.real)
    };
    config.files.iter().filter(differs).map(|file| file.path.clone()).collect()
}

/// The drop-in of the units that a socket with `Accept=yes` starts for each connection, until the next boot.
pub fn sessions_drop_in(socket: &str) -> PathBuf {
    Path::new("/run/systemd/system").join(format!("{}.d", template(socket))).join("zz-harden.conf")
}

/// Folders for drop-ins that do not exist yet.
fn missing_folders(files: &Files, config: &ConfigTree, socket: &Unit) -> Vec<PathBuf> {
    let included = config.includes.keys().filter_map(|pattern| Path::new(pattern).parent());
    let socket_folder = Path::new(UNIT_FOLDER).join(format!("{}.d", socket.name));
    let session_folder = sessions_drop_in(&socket.name).parent().map(Path::to_owned);
    let mut missing: Vec<PathBuf> = included
        .map(Path::to_owned)
        .chain([socket_folder])
        .chain(session_folder)
        .filter(|folder| !files.exists(folder))
        .collect();
    missing.sort();
    missing.dedup();
    missing
}

fn unit_files<const N: usize>(files: &Files, units: [&Unit; N]) -> BTreeMap<PathBuf, ConfigFile> {
    let paths = units.into_iter().flat_map(|unit| unit.drop_ins.iter().chain([&unit.fragment]));
    paths
        .filter(|path| !path.as_os_str().is_empty())
        .filter_map(|path| Some((path.clone(), read_config(files, path, &mut Vec::new())?)))
        .collect()
}

/// Links below /etc/systemd/system that enable, alias or mask the two units.
fn links(
    files: &Files,
    texts: &BTreeMap<PathBuf, ConfigFile>,
    units: [&Unit; 2],
) -> BTreeMap<PathBuf, Option<PathBuf>> {
    let folder = Path::new(UNIT_FOLDER);
    let mut paths = Vec::new();
    for unit in units.into_iter().filter(|unit| unit.exists()) {
        paths.push(folder.join(&unit.name));
        let install = texts.get(&unit.fragment).map(|file| file.text.as_str()).unwrap_or_default();
        for (key, value) in crate::sys::units::directives(install) {
            match key {
                "Alias" => paths.push(folder.join(value)),
                "WantedBy" => paths.push(folder.join(format!("{value}.wants")).join(&unit.name)),
                "RequiredBy" => {
                    paths.push(folder.join(format!("{value}.requires")).join(&unit.name));
                }
                _ => {}
            }
        }
        for subfolder in files.list(folder) {
            let name = subfolder.to_string_lossy();
            if [".wants", ".requires", ".upholds"].iter().any(|end| name.ends_with(end)) {
                paths.push(subfolder.join(&unit.name));
            }
        }
    }
    let image = |path: &PathBuf| match files.image(path) {
        Ok(Image::Symlink { target }) => Some(target),
        _ => None,
    };
    paths.into_iter().map(|path| (path.clone(), image(&path))).collect()
}
