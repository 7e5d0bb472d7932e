//! What the core and the links do over time: `replay` records it, here it becomes as small as a picture needs.

use serde::Serialize;

/// Neighbours become one where they take less than this part of the whole: a few pixels.
const GRAINS: f64 = 200.0;

/// One device. Of a loop one trip is shown, so that lengths times `runs` add up to what [`Replay`](crate::Replay) has.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Timeline {
    /// Cycles from the first instruction to the last.
    pub length: f64,
    /// One after another, without gaps.
    pub core: Vec<Span>,
    /// By lane, in order.
    pub links: Vec<Flight>,
    pub loops: Vec<Loop>,
}

/// What the core does for a while.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Span {
    /// The instruction that takes longest.
    pub name: String,
    pub opcode: String,
    pub line: Option<String>,
    pub start: f64,
    pub length: f64,
    /// Of the length, waiting for transfers.
    pub exposed: f64,
    /// How often it happens.
    pub runs: u64,
    pub instructions: u64,
    /// How long that instruction takes.
    #[serde(skip)]
    pub(crate) longest: f64,
}

/// A transfer, from when it has the links until it is done.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Flight {
    pub kind: &'static str,
    pub name: String,
    pub line: Option<String>,
    /// The direction that it takes; none where it takes both.
    pub lane: Option<usize>,
    pub start: f64,
    pub done: f64,
    /// What it takes; longer than it is drawn where a loop runs beside it, of which one trip is drawn.
    #[serde(skip)]
    pub time: f64,
    /// What the core waits for it.
    pub exposed: f64,
    /// Whether the core does nothing else meanwhile.
    pub synchronous: bool,
    pub runs: u64,
    pub transfers: u64,
}

/// A loop, as long as one trip.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Loop {
    pub name: String,
    pub start: f64,
    pub length: f64,
    pub trips: u64,
}

impl Timeline {
    /// At most some hundreds of each, besides what is on either side of a loop's ends.
    pub(crate) fn merged(mut self) -> Timeline {
        let grain = self.length / GRAINS;
        self.loops.retain(|one| one.length > 0.0);
        let mut core: Vec<Span> = Vec::new();
        for span in self.core {
            match core.last_mut() {
                Some(last) if last.runs == span.runs && last.length + span.length <= grain => last.add(span),
                _ => core.push(span),
            }
        }
        let mut links: Vec<Flight> = Vec::new();
        for lane in [None, Some(0), Some(1)] {
            let first = links.len();
            for flight in self.links.iter().filter(|flight| flight.lane == lane) {
                match links[first..].last_mut() {
                    Some(last) if last.runs == flight.runs && flight.done - last.start <= grain => {
                        last.add(flight);
                    }
                    _ => links.push(flight.clone()),
                }
            }
        }
        Timeline { core, links, ..self }
    }
}

impl Span {
    fn add(&mut self, other: Span) {
        if other.longest > self.longest {
            (self.name, self.opcode, self.line) = (other.name, other.opcode, other.line);
            self.longest = other.longest;
        }
        self.length += other.length;
        self.exposed += other.exposed;
        self.instructions += other.instructions;
    }
}

impl Flight {
    fn add(&mut self, other: &Flight) {
        self.done = other.done;
        self.exposed += other.exposed;
        self.synchronous &= other.synchronous;
        self.transfers += other.transfers;
    }
}
