//! A reader of deflate data (RFC 1951) that is slow, plain and nobody's: what the gateway compresses and inflates is held
//! against it. It also says how far back the data refers, which no library tells.

/// What deflate data comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inflated {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// The furthest that something refers back.
    pub furthest: usize,
    /// How many bytes of the input its last block ended within; all, where no block was the last.
    pub used: usize,
    /// Whether a block said that it is the last.
    pub last: bool,
}

/// Why it is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// It ends in the middle of a block.
    CutOff,
    /// It is not deflate data.
    Invalid,
    /// There is more than was asked for.
    TooLong,
}

struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    fn bit(&mut self) -> Result<usize, Bad> {
        let byte = self.bytes.get(self.at / 8).ok_or(Bad::CutOff)?;
        let bit = usize::from(byte >> (self.at % 8) & 1);
        self.at += 1;
        Ok(bit)
    }

    fn bits(&mut self, count: usize) -> Result<usize, Bad> {
        let mut value = 0;
        for place in 0..count {
            value |= self.bit()? << place;
        }
        Ok(value)
    }
}

/// A Huffman code: how many codes have each length, and the symbols in the order of their codes.
struct Code {
    counts: [usize; 16],
    symbols: Vec<usize>,
}

impl Code {
    /// `None`: more codes than there is room for. The second: how much room is left.
    fn new(lengths: &[usize]) -> Option<(Self, i32)> {
        let mut counts = [0; 16];
        for length in lengths {
            counts[*length] += 1;
        }
        let mut left = 1_i32;
        for count in &counts[1..] {
            left = left * 2 - *count as i32;
            if left < 0 {
                return None;
            }
        }
        if counts[0] == lengths.len() {
            left = 0;
        }
        let mut symbols = Vec::new();
        for length in 1..16 {
            symbols.extend((0..lengths.len()).filter(|symbol| lengths[*symbol] == length));
        }
        Some((Self { counts, symbols }, left))
    }

    /// Whether it has one code of one bit and no other, which is the one incomplete code that is allowed.
    fn is_single(&self) -> bool {
        self.symbols.len() == 1 && self.counts[1] == 1
    }

    fn symbol(&self, bits: &mut Bits<'_>) -> Result<usize, Bad> {
        let (mut code, mut first, mut index) = (0, 0, 0);
        for count in &self.counts[1..] {
            code |= bits.bit()?;
            if code < first + count {
                return Ok(self.symbols[index + code - first]);
            }
            index += count;
            first = (first + count) << 1;
            code <<= 1;
        }
        Err(Bad::Invalid)
    }
}

const LENGTHS: [(usize, usize); 29] = [
    (3, 0),
    (4, 0),
    (5, 0),
    (6, 0),
    (7, 0),
    (8, 0),
    (9, 0),
    (10, 0),
    (11, 1),
    (13, 1),
    (15, 1),
    (17, 1),
    (19, 2),
    (23, 2),
    (27, 2),
    (31, 2),
    (35, 3),
    (43, 3),
    (51, 3),
    (59, 3),
    (67, 4),
    (83, 4),
    (99, 4),
    (115, 4),
    (131, 5),
    (163, 5),
    (195, 5),
    (227, 5),
    (258, 0),
];
const DISTANCES: [(usize, usize); 30] = [
    (1, 0),
    (2, 0),
    (3, 0),
    (4, 0),
    (5, 1),
    (7, 1),
    (9, 2),
    (13, 2),
    (17, 3),
    (25, 3),
    (33, 4),
    (49, 4),
    (65, 5),
    (97, 5),
    (129, 6),
    (193, 6),
    (257, 7),
    (385, 7),
    (513, 8),
    (769, 8),
    (1025, 9),
    (1537, 9),
    (2049, 10),
    (3073, 10),
    (4097, 11),
    (6145, 11),
    (8193, 12),
    (12_289, 12),
    (16_385, 13),
    (24_577, 13),
];
const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/// Inflates up to the end of the last block, or of the input at the end of a block.
pub fn inflate(input: &[u8], max: usize) -> Result<Inflated, Bad> {
    let mut bits = Bits { bytes: input, at: 0 };
    let mut out = Inflated { bytes: Vec::new(), furthest: 0, used: 0, last: false };
    loop {
        // Bits that are left over before the end of the input pad it.
        if bits.at.div_ceil(8) >= input.len() {
            out.used = input.len();
            return Ok(out);
        }
        out.last = bits.bit()? == 1;
        match bits.bits(2)? {
            0 => stored(&mut bits, &mut out, max)?,
            1 => {
                let lengths: Vec<usize> =
                    (0..288).map(|n| [8, 9, 7, 8][[144, 256, 280].iter().filter(|end| n >= **end).count()]).collect();
                let (literals, _) = Code::new(&lengths).ok_or(Bad::Invalid)?;
                let (distances, _) = Code::new(&[5; 30]).ok_or(Bad::Invalid)?;
                codes(&mut bits, &mut out, &literals, &distances, max)?;
            }
            2 => {
                let (literals, distances) = dynamic(&mut bits)?;
                codes(&mut bits, &mut out, &literals, &distances, max)?;
            }
            _ => return Err(Bad::Invalid),
        }
        if out.last {
            out.used = bits.at.div_ceil(8);
            return Ok(out);
        }
    }
}

fn stored(bits: &mut Bits<'_>, out: &mut Inflated, max: usize) -> Result<(), Bad> {
    bits.at = bits.at.next_multiple_of(8);
    let length = bits.bits(16)?;
    if bits.bits(16)? != length ^ 0xFFFF {
        return Err(Bad::Invalid);
    }
    for _ in 0..length {
        let byte = bits.bits(8)? as u8;
        put(out, byte, max)?;
    }
    Ok(())
}

fn put(out: &mut Inflated, byte: u8, max: usize) -> Result<(), Bad> {
    if out.bytes.len() == max {
        return Err(Bad::TooLong);
    }
    out.bytes.push(byte);
    Ok(())
}

fn dynamic(bits: &mut Bits<'_>) -> Result<(Code, Code), Bad> {
    let (literals, distances, ordered) = (bits.bits(5)? + 257, bits.bits(5)? + 1, bits.bits(4)? + 4);
    if literals > 286 || distances > 30 {
        return Err(Bad::Invalid);
    }
    let mut lengths = [0; 19];
    for place in &ORDER[..ordered] {
        lengths[*place] = bits.bits(3)?;
    }
    let (code, 0) = Code::new(&lengths).ok_or(Bad::Invalid)? else { return Err(Bad::Invalid) };
    if code.symbols.is_empty() {
        return Err(Bad::Invalid);
    }
    let mut lengths = Vec::new();
    while lengths.len() < literals + distances {
        let (length, times) = match code.symbol(bits)? {
            16 => (*lengths.last().ok_or(Bad::Invalid)?, 3 + bits.bits(2)?),
            17 => (0, 3 + bits.bits(3)?),
            18 => (0, 11 + bits.bits(7)?),
            length => (length, 1),
        };
        lengths.extend(std::iter::repeat_n(length, times));
    }
    if lengths.len() > literals + distances || lengths[256] == 0 {
        return Err(Bad::Invalid);
    }
    let whole = |lengths: &[usize]| match Code::new(lengths) {
        Some((code, left)) if left == 0 || code.is_single() => Ok(code),
        _ => Err(Bad::Invalid),
    };
    Ok((whole(&lengths[..literals])?, whole(&lengths[literals..])?))
}

fn codes(bits: &mut Bits<'_>, out: &mut Inflated, literals: &Code, distances: &Code, max: usize) -> Result<(), Bad> {
    loop {
        match literals.symbol(bits)? {
            byte @ 0..256 => put(out, byte as u8, max)?,
            256 => return Ok(()),
            symbol => {
                let (base, extra) = *LENGTHS.get(symbol - 257).ok_or(Bad::Invalid)?;
                let length = base + bits.bits(extra)?;
                let (base, extra) = *DISTANCES.get(distances.symbol(bits)?).ok_or(Bad::Invalid)?;
                let distance = base + bits.bits(extra)?;
                if distance > out.bytes.len() {
                    return Err(Bad::Invalid);
                }
                out.furthest = out.furthest.max(distance);
                for _ in 0..length {
                    put(out, out.bytes[out.bytes.len() - distance], max)?;
                }
            }
        }
    }
}

/// A message of permessage-deflate: what was sent of it, and what its sender left out at the end.
pub fn message(deflated: &[u8], max: usize) -> Result<Inflated, Bad> {
    let mut all = Inflated { bytes: Vec::new(), furthest: 0, used: 0, last: false };
    if deflated.is_empty() {
        return Ok(all);
    }
    let input = [deflated, &[0, 0, 0xFF, 0xFF]].concat();
    let mut rest = &input[..];
    loop {
        let part = inflate(rest, max - all.bytes.len())?;
        all.bytes.extend(part.bytes);
        all.furthest = all.furthest.max(part.furthest);
        rest = &rest[part.used..];
        // A message may end with a last block, behind which nothing is left out.
        if rest.is_empty() || (part.last && rest.len() == 4) {
            return Ok(all);
        }
    }
}
