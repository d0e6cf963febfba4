//! Inputs out of inputs: small, deterministic damage of the kind that breaks parsers of tag-length-value items.

/// The longest input that is made; longer ones find nothing new and cost time.
const MAX_INPUT: usize = 4096;

/// Makes inputs from a corpus; the same corpus and seed make the same inputs in the same order.
#[derive(Clone, Debug)]
pub(crate) struct Mutator {
    corpus: Vec<Vec<u8>>,
    state: u64,
}

impl Mutator {
    /// A mutator over `corpus`, which may be empty.
    pub(crate) const fn new(corpus: Vec<Vec<u8>>, seed: u64) -> Self {
        Self { corpus, state: seed }
    }

    /// The next input: one of the corpus with one to eight mutations.
    pub(crate) fn next_input(&mut self) -> Vec<u8> {
        let mut input = self.pick();
        for _ in 0..=self.below(7) {
            self.mutate(&mut input);
        }
        input.truncate(MAX_INPUT);
        input
    }

    fn mutate(&mut self, input: &mut Vec<u8>) {
        let at = self.below(input.len());
        match self.below(6) {
            0 => self.overwrite(input, at, 1),
            1 => self.overwrite(input, at, 2), // a length, most likely
            2 => input.truncate(at),
            3 => input.insert(at, self.byte()),
            4 => self.repeat(input, at),
            _ => self.splice(input, at),
        }
    }

    fn overwrite(&mut self, input: &mut [u8], at: usize, count: usize) {
        for byte in input.iter_mut().skip(at).take(count) {
            *byte = self.byte();
        }
    }

    /// Repeats a stretch: a duplicate item, if it happens to be one.
    fn repeat(&mut self, input: &mut Vec<u8>, at: usize) {
        let stretch: Vec<u8> = input.iter().skip(at).take(1 + self.below(40)).copied().collect();
        input.splice(at..at, stretch);
    }

    /// Goes on with the rest of another input.
    fn splice(&mut self, input: &mut Vec<u8>, at: usize) {
        let other = self.pick();
        let from = self.below(other.len());
        input.truncate(at);
        input.extend(other.iter().skip(from));
    }

    fn pick(&mut self) -> Vec<u8> {
        let at = self.below(self.corpus.len());
        self.corpus.get(at).cloned().unwrap_or_default()
    }

    /// A byte; every other one is of those that mean something to the codec.
    fn byte(&mut self) -> u8 {
        const TELLING: [u8; 16] =
            [0, 1, 2, 3, 4, 5, 16, 0x11, 0x12, 0x15, 0x17, 0x20, 0x30, 0xf0, 0xf1, 0xff];
        let random = self.next_number().to_le_bytes();
        let [first, second, ..] = random;
        let telling = TELLING.get(usize::from(first) / 2).copied();
        telling.filter(|_| first % 2 == 0).unwrap_or(second)
    }

    /// A number below `bound`, or 0 if there is none.
    fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.next_number() % bound).unwrap_or_default()
    }

    /// SplitMix64: every seed is good, and no crate is needed.
    const fn next_number(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_makes_the_same_inputs_again() {
        let corpus = vec![b"\x11\x00\x01\xf1".to_vec(), vec![7; 100]];
        let inputs = |seed| {
            let mut mutator = Mutator::new(corpus.clone(), seed);
            (0..100).map(|_| mutator.next_input()).collect::<Vec<_>>()
        };
        assert_eq!(inputs(1), inputs(1));
        assert_ne!(inputs(1), inputs(2));
    }

    #[test]
    fn an_empty_corpus_is_mutated_too() {
        let mut mutator = Mutator::new(Vec::new(), 1);
        assert!((0..100).any(|_| !mutator.next_input().is_empty()));
    }
}
