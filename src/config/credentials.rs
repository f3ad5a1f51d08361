//! Files that the service manager hands over: where a key of the configuration names a file, it takes `credential:NAME`, too
//! (`LoadCredential=NAME:PATH` in the unit, systemd.exec(5)). The service manager reads the file as root and shows it to this
//! process alone, at `$CREDENTIALS_DIRECTORY/NAME`.
//!
//! Rule: a name is a name, and leads nowhere but into that folder.

use std::path::{Path, PathBuf};

use super::{Config, Problem};

/// What such a value begins with.
const PREFIX: &str = "credential:";
/// systemd's own bound on a name, which is a file's name.
const NAME_BYTES_MAX: usize = 255;

/// Puts the file's path in the place of each credential's name; what is wrong with one leaves it as it was.
pub(super) fn resolve(config: &mut Config, folder: Option<&Path>) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (key, file) in files(config) {
        let Some(name) = file.to_str().and_then(|text| text.strip_prefix(PREFIX)) else { continue };
        match find(name, folder) {
            Ok(path) => *file = path,
            Err(problem) => problems.push(Problem::new(key, format!("`{PREFIX}{name}` {problem}"))),
        }
    }
    problems
}

fn find(name: &str, folder: Option<&Path>) -> Result<PathBuf, String> {
    // What systemd takes as one: a file's name that may stand in a list with colons.
    let is_name = !matches!(name, "" | "." | "..")
        && name.len() <= NAME_BYTES_MAX
        && name.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':'));
    if !is_name {
        return Err(format!(
            "is not a credential's name; write 1 to {NAME_BYTES_MAX} visible ASCII characters without `/` and `:`, such as \
             \"{PREFIX}jwt.key\""
        ));
    }
    let folder = folder.ok_or_else(|| {
        format!(
            "needs CREDENTIALS_DIRECTORY, which is not set: the service manager sets it where the unit has \
             LoadCredential={name}:PATH; elsewhere name the folder of that file, as in \
             CREDENTIALS_DIRECTORY=/etc/pushgate pushgate config check"
        )
    })?;
    let path = folder.join(name);
    match std::fs::metadata(&path) {
        Ok(there) if there.is_file() => Ok(path),
        Ok(_) => Err(format!("is no file in {}", folder.display())),
        Err(error) => Err(format!(
            "cannot be found in {} ({error}); add LoadCredential={name}:PATH to the unit",
            folder.display()
        )),
    }
}

/// Every key that names a file to be read at the start.
fn files(config: &mut Config) -> Vec<(String, &mut PathBuf)> {
    let Config { http, grpc, ops, auth, otlp, .. } = config;
    let mut files = vec![
        ("auth.jwks.file".to_owned(), &mut auth.jwks.file),
        ("auth.jwks.ca_file".to_owned(), &mut auth.jwks.ca_file),
        ("otlp.headers_file".to_owned(), &mut otlp.headers_file),
        ("otlp.ca_file".to_owned(), &mut otlp.ca_file),
    ];
    for (index, key) in auth.keys.iter_mut().enumerate() {
        files.push((format!("auth.keys[{index}].secret_file"), &mut key.secret_file));
        files.push((format!("auth.keys[{index}].public_key_file"), &mut key.public_key_file));
    }
    for (index, token) in grpc.tokens.iter_mut().enumerate() {
        files.push((format!("grpc.tokens[{index}].token_file"), &mut token.token_file));
    }
    for (section, tls) in [("http", &mut http.tls), ("grpc", &mut grpc.tls), ("ops", &mut ops.tls)] {
        files.push((format!("{section}.tls.certificate_file"), &mut tls.certificate_file));
        files.push((format!("{section}.tls.key_file"), &mut tls.key_file));
        files.push((format!("{section}.tls.client_ca_file"), &mut tls.client_ca_file));
    }
    files
}

#[cfg(test)]
mod tests {
    use figment::value::Value;

    use super::{
        super::{check, layers},
        *,
    };
    use crate::{
        auth::{Algorithm, KeyConfig},
        grpc::config::TokenConfig,
    };

    fn full() -> Config {
        let mut full = Config::default();
        full.auth.keys = vec![KeyConfig::new(Algorithm::HS256)];
        full.grpc.tokens = vec![TokenConfig::default()];
        full
    }

    /// The keys whose names end so, by how the configuration is written down.
    fn named_file(value: &Value, path: &mut Vec<String>, found: &mut Vec<String>) {
        let parts: Vec<(String, &Value)> = match value {
            Value::Dict(_, table) => table.iter().map(|(name, value)| (name.clone(), value)).collect(),
            Value::Array(_, items) => items.iter().enumerate().map(|(at, value)| (at.to_string(), value)).collect(),
            _ => {
                let key = check::join(path.iter().map(String::as_str));
                if key.ends_with("_file") || key.ends_with(".file") {
                    found.push(key);
                }
                return;
            }
        };
        for (name, value) in parts {
            path.push(name);
            named_file(value, path, found);
            path.pop();
        }
    }

    #[test]
    fn every_key_that_names_a_file_takes_a_credential() {
        let (mut config, mut named) = (full(), Vec::new());
        named_file(&Value::from(layers::table_of(Value::serialize(&config))), &mut Vec::new(), &mut named);
        let mut known: Vec<String> = files(&mut config).into_iter().map(|(key, _)| key).collect();
        known.sort();
        named.sort();
        assert_eq!(known, named);
        assert!(known.len() >= 14, "{known:?}");
    }

    #[test]
    fn a_credential_is_the_file_of_that_name_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("jwt.key"), "").unwrap();
        std::fs::create_dir(folder.path().join("sub")).unwrap();
        let of = |value: &str, folder: Option<&Path>| {
            let mut config = full();
            config.auth.keys[0].secret_file = value.into();
            let problems = resolve(&mut config, folder);
            let lines: Vec<String> =
                problems.iter().map(|problem| format!("{}: {}", problem.key, problem.text)).collect();
            (config.auth.keys.remove(0).secret_file, lines.join("\n"))
        };
        let here = Some(folder.path());
        assert_eq!(of("credential:jwt.key", here), (folder.path().join("jwt.key"), String::new()));
        // A path is a path.
        for path in ["/etc/jwt.key", "./credential:jwt.key", ""] {
            assert_eq!(of(path, None), (path.into(), String::new()));
        }
        let long = format!("credential:{}", "n".repeat(256));
        for bad in [
            "credential:",
            "credential:..",
            "credential:sub/../jwt.key",
            "credential:/etc/shadow",
            "credential:a:b",
            "credential:a b",
            &long,
        ] {
            let (file, problem) = of(bad, here);
            assert!(file == Path::new(bad) && problem.contains("is not a credential's name"), "{bad}: {problem}");
        }
        let (_, problem) = of("credential:jwt.key", None);
        assert_eq!(
            problem,
            "auth.keys[0].secret_file: `credential:jwt.key` needs CREDENTIALS_DIRECTORY, which is not set: the service \
             manager sets it where the unit has LoadCredential=jwt.key:PATH; elsewhere name the folder of that file, as in \
             CREDENTIALS_DIRECTORY=/etc/pushgate pushgate config check"
        );
        let (_, problem) = of("credential:other", here);
        assert!(
            problem.contains("cannot be found in ") && problem.ends_with("LoadCredential=other:PATH to the unit"),
            "{problem}"
        );
        assert!(of("credential:sub", here).1.contains("is no file in "));
    }
}
