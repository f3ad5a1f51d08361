//! The engine: deterministic by its seed, so that a run can be had again.

use std::{
    collections::HashSet,
    fmt, fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use super::targets::Target;

/// The inputs that are kept to be changed, at most.
const POOL_MAX: usize = 4096;
/// The longest input.
const INPUT_BYTES_MAX: usize = 8 * 1024;
/// What takes longer is a failure of its own.
const SLOW: Duration = Duration::from_secs(3);
/// How often a failing input is tried to be made smaller, and for how long: one that is slow takes its time every time.
const SHRINKS_MAX: usize = 3000;
const SHRINKING_MAX: Duration = Duration::from_secs(20);
/// What takes longer hangs: it is told of while it does.
const HANGS: Duration = Duration::from_secs(30);
/// Of a corpus that grows: its files, and their bytes.
const CORPUS: (usize, usize) = (60, 600);

/// xorshift64*.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        // Mixed first: seeds beside each other would begin alike.
        let mixed = (seed ^ 0x9E37_79B9_7F4A_7C15).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        Self((mixed ^ (mixed >> 27)).max(1))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Below `end`, 0 where that is 0.
    pub fn below(&mut self, end: usize) -> usize {
        if end == 0 { 0 } else { (self.next() >> 11) as usize % end }
    }

    fn byte(&mut self) -> u8 {
        const TELLING: [u8; 12] = [0, 1, 0x7F, 0x80, 0x81, 0xFF, b'0', b'"', b'{', b'}', b',', 0xC1];
        match self.below(3) {
            0 => TELLING[self.below(TELLING.len())],
            _ => self.next() as u8,
        }
    }
}

/// What came of fuzzing a target.
pub struct Report {
    pub target: &'static str,
    pub executions: u64,
    kinds: usize,
    corpus: usize,
    pub failure: Option<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { target, executions, kinds, corpus, failure } = self;
        write!(f, "{target:<10} {executions:>10} executions, {corpus} in the corpus, {kinds} kinds of outcome")?;
        failure.iter().try_for_each(|text| write!(f, "\n{text}"))
    }
}

/// One target with its inputs.
pub struct Fuzzer<'a> {
    target: &'static Target,
    root: &'a Path,
    random: Random,
    seed: u64,
    pool: Vec<Vec<u8>>,
    kinds: HashSet<u64>,
    executions: u64,
    /// What is being run, and since when.
    running: Running,
}

type Running = Arc<Mutex<Option<(Instant, Vec<u8>)>>>;

/// Writes an input down: the file, and whether that could be done.
fn keep(root: &Path, name: &str, input: &[u8]) -> (PathBuf, std::io::Result<()>) {
    let folder = root.join("target/fuzz");
    let hash = input
        .iter()
        .fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3));
    let file = folder.join(format!("{name}-{hash:016x}"));
    let written = fs::create_dir_all(&folder).and_then(|()| fs::write(&file, input));
    (file, written)
}

/// Tells of an input that hangs, in a thread of its own, and ends the process: there is no other end to it.
fn watch(running: &Running, root: &Path, name: &'static str) {
    let (running, root) = (Arc::downgrade(running), root.to_owned());
    std::thread::spawn(move || {
        while let Some(running) = running.upgrade() {
            let hanging = running.lock().unwrap().clone().filter(|(since, _)| since.elapsed() > HANGS);
            drop(running);
            if let Some((_, input)) = hanging {
                let (file, written) = keep(&root, name, &input);
                eprintln!("FAILED: {name}: hangs, for more than {HANGS:?}; in {} {written:?}", file.display());
                std::process::exit(1);
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    });
}

impl<'a> Fuzzer<'a> {
    pub fn new(target: &'static Target, root: &'a Path, seed: u64) -> Self {
        let of_name = target.name.bytes().fold(seed, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
        let (random, running) = (Random::new(of_name), Running::default());
        watch(&running, root, target.name);
        Self { target, root, random, seed, pool: Vec::new(), kinds: HashSet::new(), executions: 0, running }
    }

    fn folder(&self) -> PathBuf {
        self.root.join("tests/fuzz/corpus").join(self.target.name)
    }

    fn corpus(&self) -> Vec<Vec<u8>> {
        let folder = self.folder();
        let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files.iter().map(|file| fs::read(file).unwrap()).collect()
    }

    /// Runs the corpus, then what is made of it, for so long or until something fails.
    pub fn run(mut self, span: Duration, grow: bool) -> Report {
        let until = Instant::now() + span;
        let corpus = self.corpus();
        let count = corpus.len();
        let mut failure = None;
        for input in corpus {
            failure = failure.or_else(|| self.execute(input));
        }
        let known = self.pool.len();
        while failure.is_none() && Instant::now() < until {
            for _ in 0..64 {
                let input = self.input();
                failure = failure.or_else(|| self.execute(input));
            }
        }
        if grow && failure.is_none() {
            self.grow(count, known);
        }
        let kinds = self.kinds.len();
        Report { target: self.target.name, executions: self.executions, kinds, corpus: count, failure }
    }

    /// What is wrong with it, told with all that is needed to see it again.
    fn execute(&mut self, input: Vec<u8>) -> Option<String> {
        self.executions += 1;
        *self.running.lock().unwrap() = Some((Instant::now(), input.clone()));
        match outcome(self.target, &input) {
            Ok(kind) => {
                if self.kinds.insert(kind) {
                    if self.pool.len() < POOL_MAX {
                        self.pool.push(input);
                    } else {
                        let place = self.random.below(POOL_MAX);
                        self.pool[place] = input;
                    }
                }
                None
            }
            Err(why) => {
                // Making it smaller is bounded by itself.
                *self.running.lock().unwrap() = None;
                Some(self.failed(input, &why))
            }
        }
    }

    fn failed(&mut self, mut input: Vec<u8>, why: &str) -> String {
        let length = input.len();
        let until = Instant::now() + SHRINKING_MAX;
        for _ in 0..SHRINKS_MAX {
            if Instant::now() > until {
                break;
            }
            let (from, size) = (self.random.below(input.len()), 1 + self.random.below(input.len() / 2 + 1));
            let mut smaller = input.clone();
            smaller.drain(from..(from + size).min(input.len()));
            if smaller.len() < input.len() && outcome(self.target, &smaller).is_err() {
                input = smaller;
            }
        }
        let (file, written) = keep(self.root, self.target.name, &input);
        let (name, seed, file, tries) = (self.target.name, self.seed, file.display(), self.executions);
        format!(
            "FAILED: {name}: {why}\n  at execution {tries} with FUZZ_SEED={seed}; {} bytes, of {length}, in {file} {written:?}\n  \
             again: FUZZ_REPLAY={file} tests/fuzz.sh {name}",
            input.len()
        )
    }

    /// Something from the pool, changed.
    fn input(&mut self) -> Vec<u8> {
        let random = &mut self.random;
        let mut input = match self.pool.len() {
            0 => Vec::new(),
            count => self.pool[random.below(count)].clone(),
        };
        for _ in 0..=random.below(6) {
            let (at, length) = (random.below(input.len() + 1), input.len());
            match random.below(12) {
                0 | 1 if length > 0 => input[at.min(length - 1)] ^= 1 << random.below(8),
                2 | 3 if length > 0 => input[at.min(length - 1)] = random.byte(),
                4 => input.insert(at, random.byte()),
                5 => drop(input.drain(at..(at + 1 + random.below(8)).min(length))),
                6 => input.truncate(at),
                7 => {
                    let piece = input[at..(at + 1 + random.below(64)).min(length)].to_vec();
                    let times = 1 + random.below(4);
                    let place = random.below(length + 1);
                    input.splice(place..place, piece.repeat(times));
                }
                8 | 9 => {
                    let words = self.target.words;
                    if !words.is_empty() {
                        input.splice(at..at, words[random.below(words.len())].iter().copied());
                    }
                }
                10 if length >= 8 => {
                    let at = random.below(length - 7);
                    let number = [0, 1, 125, 126, 127, 0xFFFF, 1 << 16, u64::MAX, 1 << 63][random.below(9)];
                    let bytes = number.to_be_bytes();
                    let width = [2, 4, 8][random.below(3)];
                    input[at..at + width].copy_from_slice(&bytes[8 - width..]);
                }
                _ => {
                    let other = &self.pool[random.below(self.pool.len())];
                    let from = random.below(other.len() + 1);
                    let to = from + random.below(other.len() - from + 1);
                    input.splice(at..at, other[from..to].iter().copied());
                }
            }
        }
        input.truncate(INPUT_BYTES_MAX);
        input
    }

    /// Keeps the shortest of what was found.
    fn grow(&self, count: usize, known: usize) {
        let mut found: Vec<_> = self.pool[known..].iter().filter(|input| input.len() <= CORPUS.1).collect();
        found.sort_by_key(|input| input.len());
        let room = CORPUS.0.saturating_sub(count);
        // Of every length some: the shortest are much alike.
        let step = (found.len() / room.max(1)).max(1);
        for (number, input) in found.iter().step_by(step).take(room).enumerate() {
            fs::write(self.folder().join(format!("found-{number:02}")), input).unwrap();
        }
    }
}

/// The kind of a run's outcome, or what was wrong.
fn outcome(target: &Target, input: &[u8]) -> Result<u64, String> {
    let began = Instant::now();
    let kind = catch_unwind(AssertUnwindSafe(|| (target.run)(input))).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
    })?;
    let took = began.elapsed();
    if took > SLOW { Err(format!("took {took:?}")) } else { Ok(kind) }
}
