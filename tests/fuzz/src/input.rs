//! What targets make of their octets: choices, numbers, pieces.

/// Takes choices off the front of an input; at its end everything is 0.
#[derive(Debug)]
pub struct Script<'a> {
    rest: &'a [u8],
}

impl<'a> Script<'a> {
    /// The choices in `data`.
    pub fn new(data: &'a [u8]) -> Script<'a> {
        Script { rest: data }
    }

    /// Nothing is left.
    pub fn is_over(&self) -> bool {
        self.rest.is_empty()
    }

    /// What is left.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next octet.
    pub fn octet(&mut self) -> u8 {
        let octet = self.rest.first().copied().unwrap_or_default();
        self.rest = self.rest.get(1..).unwrap_or_default();
        octet
    }

    /// A number below `bound`, which is 1 to 256.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::from(self.octet()) % bound
    }

    /// A number; small ones are cheap.
    pub fn number(&mut self) -> u64 {
        match self.octet() {
            octet @ ..=247 => u64::from(octet),
            octet => self
                .octets(usize::from(octet) - 247)
                .iter()
                .fold(0, |number, &octet| number << 8 | u64::from(octet)),
        }
    }

    /// The next `count` octets, fewer at the end.
    pub fn octets(&mut self, count: usize) -> &'a [u8] {
        let (head, rest) = self.rest.split_at(count.min(self.rest.len()));
        self.rest = rest;
        head
    }

    /// Some octets.
    pub fn some(&mut self) -> &'a [u8] {
        let count = self.below(256);
        self.octets(count)
    }

    /// Some text.
    pub fn text(&mut self) -> String {
        String::from_utf8_lossy(self.some()).into_owned()
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// `data` in pieces: whole for 0, octet by octet for 1, otherwise in lengths that follow from `how`.
pub fn pieces(how: u8, data: &[u8]) -> Vec<&[u8]> {
    let mut pieces = Vec::new();
    let (mut rest, mut state) = (data, u32::from(how));
    while !rest.is_empty() {
        let length = match how {
            0 => rest.len(),
            1 => 1,
            _ => {
                // a linear congruence (Numerical Recipes): anything that differs from one `how` to the next
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                1 + (state >> 16) as usize % usize::from(how)
            }
        };
        let (piece, after) = rest.split_at(length.min(rest.len()));
        pieces.push(piece);
        rest = after;
    }
    pieces
}
