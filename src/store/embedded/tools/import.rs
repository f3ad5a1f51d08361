//! Reads an export into a new store.
//!
//! Rules: the store is made beside its place and comes there whole, or not at all. It keeps the epoch and the mark of
//! the one that was exported, so that it goes on where that one stood: no offset is given twice, and no client notices.
//! How much is pending is counted from what was read.

use std::{
    fs,
    io::{self, BufRead, Read as _},
    path::Path,
    sync::Arc,
};

use super::{
    super::{
        engine::{Engine, EngineError},
        keys::{self, Key},
        kind::Kind,
        record, rows,
    },
    Place, ToolError, beside,
    files::{self, Fresh},
    line::{End, Header, Line, VERSION},
    walk::{self, Batches},
};
use crate::{
    limits,
    store::{Counters, EngineName, Totals},
    types::{LogId, Offset, UserId},
};

/// Reads an export into a store at `place`, which must not be there yet, or be empty; the engine where `place` names none
/// is sled. Tells how many rows were read.
pub fn import(place: &Place, input: &mut dyn BufRead) -> Result<u64, ToolError> {
    let kind = Kind::of(place.engine.unwrap_or(EngineName::Sled));
    let there = is_there(&place.path)?;
    let at = |source| ToolError::File { what: "cannot make the folder of", path: place.path.clone(), source };
    fs::create_dir_all(files::parent(&place.path)).map_err(at)?;
    let folder = beside(&place.path, ".importing")?;
    let fresh = Fresh::make(kind, folder.clone()).map_err(|error| ToolError::engine(&folder, error))?;
    let failed = |stopped| match stopped {
        Stopped::Engine(error) => ToolError::engine(&folder, error),
        Stopped::Told(error) => error,
    };
    let rows = fresh.engine().map_err(Stopped::from).and_then(|engine| import_rows(engine, input)).map_err(failed)?;
    match there {
        There::Nothing => fresh.put_at(&place.path).map_err(at)?,
        There::Folder => fresh.put_over(&place.path).map_err(at)?,
        There::Store(old, engine) => {
            fresh.swap_with(&place.path, old)?;
            drop(engine);
        }
    }
    Ok(rows)
}

enum There {
    Nothing,
    /// An empty folder.
    Folder,
    /// A store without any rows but its own, open, so that nobody begins to use it.
    Store(&'static Kind, Arc<dyn Engine>),
}

fn is_there(path: &Path) -> Result<There, ToolError> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(There::Nothing),
        entries => {
            entries.map_err(|source| ToolError::File { what: "cannot look at", path: path.to_owned(), source })?
        }
    };
    let Some(kind) = Kind::at(path) else {
        return match entries.flatten().next() {
            None => Ok(There::Folder),
            Some(entry) => {
                let what = format!("{} is there", entry.file_name().to_string_lossy());
                Err(ToolError::NotEmpty { path: path.to_owned(), what })
            }
        };
    };
    let engine = files::open(kind, path)?;
    let mut rows = 0u64;
    let failed = |error| ToolError::engine(path, error);
    walk::each(&*engine, keys::all(), |(key, _)| {
        let own = matches!(Key::decode(&key), Some(Key::Format | Key::Epoch | Key::Mark | Key::Totals | Key::Commits));
        rows += u64::from(!own);
        Ok(())
    })
    .map_err(failed)?;
    if rows > 0 {
        let what = format!("a {} store of {rows} rows is there", kind.name);
        return Err(ToolError::NotEmpty { path: path.to_owned(), what });
    }
    Ok(There::Store(kind, engine))
}

/// Reads an export into an empty engine.
pub(super) fn import_rows(engine: &dyn Engine, input: &mut dyn BufRead) -> Result<u64, Stopped> {
    Importer::run(engine, input)
}

/// Why it did not come to its end.
#[derive(Debug)]
pub(super) enum Stopped {
    Engine(EngineError),
    Told(ToolError),
}

impl From<EngineError> for Stopped {
    fn from(error: EngineError) -> Self {
        Stopped::Engine(error)
    }
}

impl From<ToolError> for Stopped {
    fn from(error: ToolError) -> Self {
        Stopped::Told(error)
    }
}

/// The lines of an export, one at a time, numbered.
struct Lines<'a> {
    input: &'a mut dyn BufRead,
    number: u64,
    bytes: Vec<u8>,
}

impl Lines<'_> {
    fn wrong(&self, why: impl Into<String>) -> ToolError {
        ToolError::Line { line: self.number, why: why.into() }
    }

    /// The next line; `None` at the end of the file.
    fn next(&mut self) -> Result<Option<Line>, ToolError> {
        self.bytes.clear();
        self.number += 1;
        let limit = limits::IMPORT_LINE_BYTES_MAX as u64;
        let read = (&mut *self.input).take(limit).read_until(b'\n', &mut self.bytes);
        let read = read.map_err(|source| ToolError::Stream { what: "cannot read the export", source })?;
        if read == 0 {
            return Ok(None);
        }
        if self.bytes.last() != Some(&b'\n') && read as u64 == limit {
            return Err(self.wrong(format!("is longer than {limit} bytes")));
        }
        // What serde_json says counts lines within the line.
        let line = serde_json::from_slice(&self.bytes).map_err(|error| {
            self.wrong(
                format!("is no line of an export, or is cut off ({error})")
                    .replace(" at line 1 column ", " at column "),
            )
        })?;
        Ok(Some(line))
    }
}

struct Importer<'a> {
    engine: &'a dyn Engine,
    batches: Batches,
    mark: u64,
    found: End,
}

impl<'a> Importer<'a> {
    fn run(engine: &'a dyn Engine, input: &mut dyn BufRead) -> Result<u64, Stopped> {
        let mut lines = Lines { input, number: 0, bytes: Vec::new() };
        let header = match lines.next()? {
            Some(Line::Export(header)) => header,
            _ => return Err(lines.wrong("an export begins with {\"export\":…}").into()),
        };
        check_header(&header).map_err(|why| lines.wrong(why))?;
        let mut importer = Self { engine, batches: Batches::default(), mark: header.mark, found: End::default() };
        let end = loop {
            match lines.next()? {
                Some(Line::End(end)) => break end,
                Some(line) => importer.line(line)?.map_err(|why| lines.wrong(why))?,
                None => {
                    return Err(lines.wrong("the export is cut off: its last line, {\"end\":…}, is missing").into());
                }
            }
        };
        if (End { unreadable: 0, ..end }) != importer.found {
            return Err(lines.wrong("the last line counts other rows than there are").into());
        }
        if lines.next()?.is_some() {
            return Err(lines.wrong("there is more behind the last line").into());
        }
        importer.batches.commit(engine)?;
        let (notifications, totals) = count(engine)?;
        if notifications != end.notifications {
            return Err(lines.wrong("two notifications have the same place").into());
        }
        let own = [
            (Key::Epoch, rows::encode_epoch(header.epoch)),
            (Key::Mark, rows::encode_mark(header.mark)),
            (Key::Totals, rows::encode_totals(&totals)),
            (Key::Format, rows::encode_format(rows::FORMAT)),
        ];
        engine.commit(own.into_iter().map(|(key, row)| (key.encode(), Some(row))).collect())?;
        Ok(end.counters + end.devices + end.forgotten + end.members + end.notifications + end.ids + end.revocations)
    }

    fn put(&mut self, key: &Key, value: Vec<u8>) -> Result<(), EngineError> {
        self.batches.put(self.engine, key.encode(), value)
    }

    /// Writes the rows that a line stands for, or says what is wrong with it.
    fn line(&mut self, line: Line) -> Result<Result<(), String>, EngineError> {
        let mark = self.mark;
        macro_rules! sound {
            ($read:expr) => {
                match $read {
                    Ok(read) => read,
                    Err(why) => return Ok(Err(why)),
                }
            };
        }
        match line {
            Line::Export(_) | Line::End(_) => return Ok(Err("a second beginning".into())),
            Line::Counters(line) => {
                let (log, counters) = sound!(line.read(mark));
                self.put(&Key::Counters(log), rows::encode_counters(&counters))?;
                self.found.counters += 1;
            }
            Line::Device(line) => {
                let (user, device, row) = sound!(line.read(mark));
                self.put(&Key::Device(user, device), rows::encode_device(&row))?;
                self.found.devices += 1;
            }
            Line::Forgotten(line) => {
                let (user, device, at) = sound!(line.read());
                self.put(&Key::Forgotten(user, device), rows::encode_forgotten(at))?;
                self.found.forgotten += 1;
            }
            Line::Member(line) => {
                let (user, device, topic, row) = sound!(line.read(mark));
                self.put(&Key::Member(user, device, topic), rows::encode_member(&row))?;
                self.found.members += 1;
            }
            Line::Notification(line) => {
                let (log, offset, notification, remembered) = sound!(line.read(mark));
                if notification.payload.bytes().len() > limits::WRITER_QUEUE_BYTES_MAX {
                    return Ok(Err("a payload that is larger than any that the gateway takes".into()));
                }
                let (head, chunks) = record::encode(&notification, remembered);
                for (index, chunk) in (0..=u16::MAX).zip(chunks) {
                    self.put(&Key::Chunk(log.clone(), offset, index), chunk)?;
                }
                if let Some(moment) = notification.expires_at {
                    self.put(&Key::Expiry(keys::expiry_minute(moment), log.clone()), Vec::new())?;
                }
                self.put(&Key::Head(log, offset), head)?;
                self.found.notifications += 1;
            }
            Line::Id(line) => {
                let (log, id, remembered) = sound!(line.read(mark));
                let end = Key::IdEnd(keys::expiry_minute(remembered.until), log.clone(), id.clone());
                self.put(&end, Vec::new())?;
                self.put(&Key::Id(log, id), rows::encode_remembered(&remembered))?;
                self.found.ids += 1;
            }
            Line::Revocation(line) => {
                let (id, revocation) = sound!(line.read());
                self.put(&Key::Revocation(id), rows::encode_revocation(&revocation))?;
                self.found.revocations += 1;
            }
        }
        Ok(Ok(()))
    }
}

fn check_header(header: &Header) -> Result<(), String> {
    if header.version != VERSION {
        return Err(format!("an export of version {}, and this build reads {VERSION}", header.version));
    }
    if header.store_format > rows::FORMAT {
        return Err(format!(
            "an export of a store of format version {}, and this build knows {}",
            header.store_format,
            rows::FORMAT
        ));
    }
    if !(1..=Offset::MAX.get()).contains(&header.mark) {
        return Err("the mark is none".into());
    }
    match &header.user {
        Some(user) => {
            Err(format!("an export of one user, {:?}; a store is made from a whole one", UserId::parse(user)))
        }
        None => Ok(()),
    }
}

/// Writes what is pending into the counters of every log; tells how many notifications there are, and the totals.
fn count(engine: &dyn Engine) -> Result<(u64, Totals), EngineError> {
    let (mut totals, mut batches) = (Totals::default(), Batches::default());
    let mut open: Option<(LogId, Counters)> = None;
    let mut close = |open: Option<(LogId, Counters)>| {
        let Some((log, found)) = open else { return Ok(()) };
        let key = Key::Counters(log).encode();
        let written = engine.get(&key)?.and_then(|row| rows::decode_counters(&row).ok()).unwrap_or_default();
        let counters = Counters { last: found.last.max(written.last), lost: written.lost, ..found };
        totals.count += u64::from(counters.count);
        totals.bytes += counters.bytes;
        batches.put(engine, key, rows::encode_counters(&counters))
    };
    for range in keys::all_heads() {
        walk::each(engine, range, |(key, row)| {
            let (Some(Key::Head(log, offset)), Ok((head, _))) = (Key::decode(&key), record::decode_head(&row)) else {
                return Err(EngineError::Corrupt("a row that was just written cannot be read".into()));
            };
            if open.as_ref().is_none_or(|(of, _)| *of != log) {
                close(open.replace((log, Counters::default())))?;
            }
            if let Some((_, found)) = &mut open {
                found.count = found.count.saturating_add(1);
                found.bytes += u64::from(head.bytes);
                found.last = offset;
            }
            Ok(())
        })?;
    }
    close(open)?;
    batches.commit(engine)?;
    Ok((totals.count, totals))
}
