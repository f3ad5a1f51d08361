//! What `serve --dev` adds, so that a newcomer sees a message in a minute: settings for loopback, a key of its own, a
//! page that connects as alice, and lines to paste.
//!
//! * `key.rs`: the key's file, and tokens signed with it.
//! * `page.rs`, `page.html`: the page, one file.
//! * `lines.rs`: what is printed.
//!
//! The key is `dev.key` in the folder of the data, made once, mode 0600. Other keys of the configuration stay in force.

mod key;
mod lines;
mod page;

use std::path::{Path, PathBuf};

use figment::value::Value;

pub use self::key::KeyFileError;
use self::{key::Signer, lines::Lines, page::Values};
use crate::{
    api::Listener,
    auth::{Algorithm, KeyConfig},
    clock::Clock,
    config::{Config, Flag},
    ws::Page,
};

/// Whom the page and the printed token stand for.
pub const USER: &str = "alice";
/// The key's name, in tokens.
const KID: &str = "pushgate-dev";
/// The key's file, in the folder of the data.
const KEY_FILE: &str = "dev.key";
/// The data folder, where nothing else is said.
const STORE_PATH: &str = "./pushgate-data";

/// What `--dev` sets, over the file and under the environment and the flags.
pub fn settings() -> Vec<Flag> {
    let one = |address: &str| Value::from(vec![address]);
    let set = |key, value| Flag { name: "--dev", key, value };
    vec![
        set("http.listen", one("127.0.0.1:7000")),
        set("grpc.listen", one("127.0.0.1:7001")),
        set("grpc.insecure", Value::from(true)),
        set("ops.listen", one("127.0.0.1:7002")),
        set("store.path", Value::from(STORE_PATH)),
    ]
}

/// Whether a run with `--dev` and its own settings has left its key below the current folder.
pub fn was_here() -> bool {
    Path::new(STORE_PATH).join(KEY_FILE).is_file()
}

/// Adds the key that [`Dev::open`] makes where it is not there yet.
pub fn add_key(config: &mut Config) {
    let key = KeyConfig { kid: KID.to_owned(), secret_file: key_file(config), ..KeyConfig::new(Algorithm::HS256) };
    config.auth.keys.push(key);
}

fn key_file(config: &Config) -> PathBuf {
    config.store.path.join(KEY_FILE)
}

/// What a run with `--dev` needs beside the daemon.
pub struct Dev {
    signer: Signer,
    http_path: String,
    data: PathBuf,
    clock: Clock,
}

impl Dev {
    /// Reads the key, or makes it with the folder that holds it.
    ///
    /// # Errors
    /// The folder or the file cannot be made or read.
    pub fn open(config: &Config) -> Result<Self, KeyFileError> {
        let signer = Signer::open(&key_file(config), &config.auth)?;
        let (http_path, data) = (config.http.path.clone(), config.store.path.clone());
        Ok(Self { signer, http_path, data, clock: Clock::system() })
    }

    /// The page of a daemon that listens there.
    pub fn page(&self, listeners: &[Listener]) -> Page {
        let (signer, clock) = (self.signer.clone(), self.clock.clone());
        let path = self.http_path.clone();
        let send = self.with_lines(listeners, |lines| lines.send());
        page::page(move || {
            let token = signer.token(USER, clock.unix_millis()).text;
            Values { user: USER, token: &token, path: &path, send: [&send[0], &send[1]] }.html()
        })
    }

    /// What to print once it serves there.
    pub fn lines(&self, listeners: &[Listener]) -> String {
        self.with_lines(listeners, |lines| lines.to_string())
    }

    fn with_lines<T>(&self, listeners: &[Listener], then: impl FnOnce(&Lines<'_>) -> T) -> T {
        then(&Lines {
            program: &lines::program(),
            user: USER,
            token: &self.signer.token(USER, self.clock.unix_millis()),
            path: &self.http_path,
            data: &self.data,
            listeners,
        })
    }
}
