//! Drives a generator as an engine would: packed steps over a paged cache, prompts in chunks, greedy choice.

use crate::kv::{BLOCK, BlockId, KvStore};
use crate::model::api::{Features, Generator, Prompt, SequenceStep, Step, VisionInput};
use crate::model::trace::Trace;

/// One prompt and what was written after it.
pub struct Sequence {
    prompt: Prompt,
    features: Vec<Features>,
    blocks: Vec<BlockId>,
    /// Tokens in the cache.
    past: usize,
    /// Largest number of its tokens in one step.
    chunk: usize,
    pub written: Vec<u32>,
    /// Logits of each step that wrote.
    pub logits: Vec<Vec<f32>>,
}

/// A generator with its cache; blocks are handed out in a scattered order.
pub struct Driver<'a> {
    pub generator: &'a mut dyn Generator,
    pub cache: KvStore,
    next_block: usize,
}

impl<'a> Driver<'a> {
    pub fn new(generator: &'a mut dyn Generator, blocks: usize) -> Self {
        let cache = generator.cache(blocks).unwrap();
        Self { generator, cache, next_block: 0 }
    }

    /// A sequence with room for `answer` tokens after its prompt.
    pub fn sequence(&mut self, prompt: &Prompt, chunk: usize, answer: usize) -> Sequence {
        self.sharing(prompt, chunk, answer, &[])
    }

    /// The same, beginning with blocks that another sequence has filled with the same tokens.
    pub fn sharing(&mut self, prompt: &Prompt, chunk: usize, answer: usize, shared: &[BlockId]) -> Sequence {
        let count = (prompt.ids.len() + answer).div_ceil(BLOCK) - shared.len();
        let blocks = shared.iter().copied().chain((0..count).map(|_| self.take())).collect();
        let features = prompt.images.iter().map(|image| self.see(&image.input)).collect();
        Sequence {
            prompt: prompt.clone(),
            features,
            blocks,
            past: shared.len() * BLOCK,
            chunk,
            written: Vec::new(),
            logits: Vec::new(),
        }
    }

    fn see(&mut self, image: &VisionInput) -> Features {
        self.generator.see(image, &mut Trace::off()).unwrap()
    }

    /// An unused block; neighbours in a table are no neighbours in the cache.
    fn take(&mut self) -> BlockId {
        let blocks = self.cache.shape().blocks;
        assert!(self.next_block < blocks, "the cache is too small for this test");
        let block = self.next_block * 7 % blocks;
        self.next_block += 1;
        BlockId(block as u32)
    }

    /// Steps until every sequence has written `answer` tokens.
    pub fn run(&mut self, sequences: &mut [Sequence], answer: usize) {
        while sequences.iter().any(|sequence| sequence.written.len() < answer) {
            let mut running: Vec<&mut Sequence> =
                sequences.iter_mut().filter(|sequence| sequence.written.len() < answer).collect();
            self.step(&mut running, &mut Trace::off(), None);
        }
    }

    /// One step of all `sequences`; `rows` are the rows whose logits are wanted beside the last ones.
    pub fn step(&mut self, sequences: &mut [&mut Sequence], trace: &mut Trace, rows: Option<&[usize]>) -> Vec<f32> {
        let (mut tokens, mut positions, mut wanted, mut writers) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut parts = Vec::new();
        for (index, sequence) in sequences.iter().enumerate() {
            let new = sequence.chunk.min(sequence.len() - sequence.past);
            for at in sequence.past..sequence.past + new {
                tokens.push(sequence.token(at));
                positions.push(sequence.prompt.position(at));
            }
            if sequence.past + new == sequence.len() {
                wanted.push(tokens.len() - 1);
                writers.push(index);
            }
            parts.push((new, sequence.past));
        }
        let steps: Vec<SequenceStep<'_>> = sequences
            .iter()
            .zip(&parts)
            .map(|(sequence, (new, past))| SequenceStep { new: *new, past: *past, blocks: &sequence.blocks })
            .collect();
        let mut splices = Vec::new();
        let mut row = 0;
        for (sequence, (new, past)) in sequences.iter().zip(&parts) {
            splices.extend(sequence.prompt.splices(*past..past + new, row, &sequence.features));
            row += new;
        }
        let asked = rows.unwrap_or(&wanted);
        let step = Step {
            tokens: &tokens,
            positions: &positions,
            sequences: &steps,
            splices: &splices,
            logits: asked,
            hidden: &[],
        };
        let out = self.generator.step(&step, &mut self.cache, trace).unwrap();
        let vocabulary = self.generator.shape().vocabulary;
        let logits = out.logits.into_host().unwrap();
        for (sequence, (new, _)) in sequences.iter_mut().zip(&parts) {
            sequence.past += new;
        }
        if rows.is_none() {
            for (writer, logits) in writers.iter().zip(logits.chunks(vocabulary)) {
                sequences[*writer].write(logits);
            }
        }
        logits
    }
}

impl Sequence {
    fn len(&self) -> usize {
        self.prompt.ids.len() + self.written.len()
    }

    fn token(&self, at: usize) -> u32 {
        let prompt = &self.prompt.ids;
        prompt.get(at).copied().unwrap_or_else(|| self.written[at - prompt.len()])
    }

    fn write(&mut self, logits: &[f32]) {
        assert!(logits.iter().all(|logit| logit.is_finite()));
        let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
        self.written.push(best as u32);
        self.logits.push(logits.to_vec());
    }

    /// The blocks that its first `tokens` tokens fill whole.
    pub fn full_blocks(&self, tokens: usize) -> &[BlockId] {
        &self.blocks[..tokens / BLOCK]
    }
}
