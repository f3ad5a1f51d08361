//! `pushgate init`: a first configuration with secrets of its own.
//!
//! Nothing is overwritten: a file that is there stays, or with `--force` is moved aside. What is written is read back
//! and checked as `config check` would. As root, at the default place, on a system that has the service's group, the file is
//! made readable for that group and so for the service; elsewhere it is its maker's alone.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, fchown},
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::Args;
use serde_json::json;

use super::{
    connect::Format,
    failure::{EXIT_FAILURE, Failure, Outcome},
    output,
    token::{AdminToken, block, random},
};
use crate::{
    config::{Config, DEFAULT_FILE, Sources},
    types::ListenAddress,
};

/// The command's examples.
pub const EXAMPLES: &str = "Examples:
  pushgate init > admin.token
  pushgate init --config ./pushgate.toml && pushgate serve --config ./pushgate.toml";

/// `pushgate init`.
#[derive(Args, Debug)]
pub struct Init {
    /// The file to write
    #[arg(long, value_name = "FILE", default_value = DEFAULT_FILE)]
    config: PathBuf,
    /// Where the file exists, move it aside first
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    format: Format,
}

/// Where a gateway of this configuration has its things.
struct Places {
    http: &'static str,
    socket: String,
    data: String,
}

impl Places {
    /// For a service at the default place; else all beside the file, so that anyone can try it out.
    fn of(file: &Path) -> Outcome<Self> {
        if file == Path::new(DEFAULT_FILE) {
            let (socket, data) = ("unix:/run/pushgate/admin.sock".to_owned(), "/var/lib/pushgate".to_owned());
            return Ok(Self { http: "0.0.0.0:7000", socket, data });
        }
        let absolute = std::path::absolute(file).map_err(|error| Failure::file("cannot find", file, &error))?;
        let folder = absolute.parent().unwrap_or(Path::new("/"));
        let text = |name: &str| {
            let path = folder.join(name);
            let not_text = || Failure::new(EXIT_FAILURE, format!("{} is not UTF-8", path.display()));
            path.to_str().map(str::to_owned).ok_or_else(not_text)
        };
        let socket = format!("unix:{}", text("admin.sock")?);
        ListenAddress::parse(&socket)
            .map_err(|error| Failure::new(EXIT_FAILURE, format!("{error}; choose a folder whose path is shorter")))?;
        Ok(Self { http: "127.0.0.1:7000", socket, data: text("data")? })
    }
}

/// Runs `pushgate init`.
pub fn init(args: &Init) -> Outcome {
    let file = &args.config;
    let admin = AdminToken::new()?;
    let text = configuration(&Places::of(file)?, &STANDARD.encode(random::<32>()?), &admin.sha256);
    if let Some(folder) = file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder).map_err(|error| Failure::file("cannot make the folder", folder, &error))?;
    }
    let group = service_group(file);
    let moved = if args.force { move_aside(file)? } else { None };
    if let Err(failure) = write(file, &text, group) {
        if let Some(moved) = &moved {
            let _ = fs::rename(moved, file);
        }
        return Err(failure);
    }
    if args.format.json {
        output::document(&json!({ "config": file, "movedTo": moved, "adminToken": admin.token }))?;
    } else {
        output::line(&admin.token)?;
    }
    if let Some(moved) = moved {
        output::note(&format!("The file that was there is now {}.", moved.display()));
    }
    let shown = file.display();
    let (access, next) = if group.is_some() {
        ("mode 0640, root's to write and the service's to read", "systemctl enable --now pushgate".to_owned())
    } else {
        (
            "mode 0600; the user that the gateway runs as must be able to read it",
            format!("pushgate config check --config {shown}\n      pushgate serve --config {shown}"),
        )
    };
    output::note(&format!(
        "Wrote {shown} ({access}).\n\
         Standard output has the token of the caller `admin`, this once; services call 127.0.0.1:7001 with it.\n\
         Next: {next}"
    ));
    Ok(())
}

/// Whose the file at the default place is to read, beside root: the group that systemd-sysusers made, where there is one.
fn service_group(file: &Path) -> Option<u32> {
    if file != Path::new(DEFAULT_FILE) || !rustix::process::geteuid().is_root() {
        return None;
    }
    group_id(&fs::read_to_string("/etc/group").ok()?, "pushgate")
}

/// A group's number, by group(5): `name:password:number:members`.
fn group_id(groups: &str, name: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

fn configuration(places: &Places, secret: &str, token_sha256: &str) -> String {
    let [socket, data] = [&places.socket, &places.data].map(|text| toml::Value::from(text.as_str()));
    let http = places.http;
    let token = block("admin", token_sha256, &["admin"]);
    format!(
        "# Pushgate's configuration. Every other key has a default; `pushgate config show` prints all of them.
# It holds a signing key: keep it readable for the gateway alone.

[http]                          # where clients connect
listen = [\"{http}\"]

[grpc]                          # where services and operators call; the socket needs no token
listen = [{socket}, \"127.0.0.1:7001\"]

{token}

[ops]                           # /livez, /readyz
listen = [\"127.0.0.1:7002\"]

[store]
path = {data}

[[auth.keys]]                   # what users' tokens are signed with
kid = \"first\"
algorithm = \"HS256\"
secret_base64 = \"{secret}\"
"
    )
}

/// Writes a new file, the group's to read as well, and takes it away again where the gateway would not take it.
fn write(file: &Path, text: &str, group: Option<u32>) -> Outcome {
    let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    let mut opened = created.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Failure::new(
            EXIT_FAILURE,
            format!("{} exists and stays as it is; name another file, or move it aside with --force", file.display()),
        ),
        _ => Failure::file("cannot write", file, &error),
    })?;
    let written = opened
        .write_all(text.as_bytes())
        // The group first: what it may read before that would be another's to read.
        .and_then(|()| match group {
            Some(group) => fchown(&opened, Some(0), Some(group))
                .and_then(|()| opened.set_permissions(fs::Permissions::from_mode(0o640))),
            None => Ok(()),
        })
        .and_then(|()| opened.sync_all())
        .map_err(|error| Failure::file("cannot write", file, &error))
        .and_then(|()| {
            let sources = Sources { file: Some(file.to_owned()), ..Sources::default() };
            Ok(Config::load(sources).and_then(|loaded| loaded.check_files())?)
        });
    if written.is_err() {
        // It was made a moment ago and is of no use; that it stays would be told by the next `init`.
        let _ = fs::remove_file(file);
    }
    written
}

/// Moves a file that is there to a name that is free.
fn move_aside(file: &Path) -> Outcome<Option<PathBuf>> {
    for number in 1.. {
        let mut name = file.as_os_str().to_owned();
        name.push(format!(".old-{number}"));
        let to = PathBuf::from(name);
        // A link is made only where nothing is, unlike a rename.
        match fs::hard_link(file, &to) {
            Ok(()) => {
                fs::remove_file(file).map_err(|error| Failure::file("cannot move", file, &error))?;
                return Ok(Some(to));
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Failure::file("cannot move aside", file, &error)),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_found_by_its_whole_name() {
        let groups = "root:x:0:\npushgate-ops:x:7:a,b\nbroken\npushgate:x:998:ops,admin\n";
        assert_eq!(group_id(groups, "pushgate"), Some(998));
        assert_eq!(group_id(groups, "push"), None);
        assert_eq!(group_id("pushgate:x:many:\npushgate\n", "pushgate"), None);
    }

    #[test]
    fn a_file_elsewhere_is_its_makers_alone() {
        assert_eq!(service_group(Path::new("/tmp/pushgate.toml")), None);
    }
}
