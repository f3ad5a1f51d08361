//! The configuration: any file is taken or refused with lines that name the file, and no secret is in what is shown of it.

use std::{cell::OnceCell, fs};

use pushgate::config::{Config, Sources};
use tempfile::TempDir;

use super::{kind, size};

pub const WORDS: &[&[u8]] = &[
    b"[http]\n",
    b"listen = [\"127.0.0.1:0\"]\n",
    b"[[auth.keys]]\n",
    b"algorithm = \"HS256\"\n",
    b"secret = \"s3cr3t-s3cr3t-s3cr3t-s3cr3t-s3cr3t\"\n",
    b"[[grpc.tokens]]\nname = \"a\"\nscopes = [\"send\"]\n",
    b"[ws]\ncompression = \"off\"\n",
    b"[limits]\n",
    b"message_bytes = \"64KiB\"\n",
    b"\"30s\"",
    b"\"99999999999999999999d\"",
    b"-1",
    b"9223372036854775807",
    b"1.5",
    b"1979-05-27T07:32:00Z",
    b"[[topics]]\npattern = \"room.*\"\n",
    b"\"\"\"",
    b"inf",
];
const SECRET: &str = "s3cr3t";

thread_local! {
    static FOLDER: OnceCell<TempDir> = const { OnceCell::new() };
}

pub fn run(input: &[u8]) -> u64 {
    let file = FOLDER.with(|folder| folder.get_or_init(|| tempfile::tempdir().unwrap()).path().join("pushgate.toml"));
    fs::write(&file, input).unwrap();
    let sources = || Sources { file: Some(file.clone()), ..Sources::default() };
    // Where it stands elsewhere it is none: an unknown key or a wrong value is named.
    let told = |text: &str| text.matches(SECRET).count() == text.matches("secret = \"s3cr3t-s3cr3t").count() * 5;
    let secret = std::str::from_utf8(input).is_ok_and(told);
    let read = Config::read(sources());
    let loaded = Config::load(sources());
    let shape = match &loaded {
        Ok(loaded) => {
            let shown = loaded.to_toml();
            assert!(!secret || !shown.contains(SECRET), "a secret is shown");
            assert_eq!(Config::load(sources()).unwrap().config, loaded.config, "read twice, it is another");
            fs::write(&file, shown).unwrap();
            assert!(Config::read(sources()).is_ok(), "what is shown cannot be read");
            (0, loaded.without_effect().len())
        }
        Err(error) => {
            assert!(!error.problems().is_empty());
            for problem in error.problems() {
                assert!(!secret || !problem.contains(SECRET), "a secret is in `{problem}`");
                assert!(!problem.trim().is_empty());
            }
            (1 + usize::from(read.is_err()), error.problems().len().min(6))
        }
    };
    let first: Option<Vec<String>> = loaded.as_ref().err().map(|error| {
        error
            .problems()
            .iter()
            .take(3)
            .map(|problem| problem.split([':', '`']).nth(1).unwrap_or_default().to_owned())
            .collect()
    });
    kind((shape, first, size(input.len())))
}
