//! What a device of each TPU generation can do, from the generations' public specifications.

use serde::Serialize;

/// One device, as a topology counts them: a chip, but on v2, v3 and tpu7x one of a chip's two cores.
#[derive(Debug, PartialEq, Serialize)]
pub struct Chip {
    /// The first part of a topology's name.
    pub name: &'static str,
    /// Cycles a second. That of tpu7x is worked out from its peak and the width of its matrix units.
    pub clock: f64,
    /// Bytes a second.
    pub hbm_bandwidth: f64,
    /// Bytes.
    pub hbm: u64,
    /// Bytes of vector memory that one core has.
    pub vmem: u64,
    /// Floating-point operations a second, bfloat16.
    pub peak: f64,
    /// Usable bytes a second that a ring of devices passes on: two links one way each, at nine tenths of their speed.
    pub ring: f64,
}

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

pub const CHIPS: [Chip; 7] = [
    chip("v2", 0.7e9, 3.5e11, 8 * GIB, 16 * MIB, 2.3e13, 1.1e11),
    chip("v3", 0.94e9, 4.5e11, 16 * GIB, 16 * MIB, 6.15e13, 1.5e11),
    chip("v4", 1.05e9, 1.228e12, 32 * GIB, 16 * MIB, 2.75e14, 9.0e10),
    chip("v5e", 1.5e9, 8.19e11, 16 * GIB, 128 * MIB, 1.97e14, 9.0e10),
    chip("v5p", 1.75e9, 2.765e12, 95 * GIB, 64 * MIB, 4.59e14, 1.8e11),
    chip("v6e", 1.75e9, 1.64e12, 32 * GIB, 128 * MIB, 9.18e14, 1.8e11),
    chip("tpu7x", 2.2e9, 3.69e12, 96 * GIB, 64 * MIB, 1.1535e15, 1.8e11),
];

const fn chip(
    name: &'static str,
    clock: f64,
    hbm_bandwidth: f64,
    hbm: u64,
    vmem: u64,
    peak: f64,
    ring: f64,
) -> Chip {
    Chip { name, clock, hbm_bandwidth, hbm, vmem, peak, ring }
}

impl Chip {
    /// Seconds that a step from one device to the next takes, however little is sent.
    pub const STEP: f64 = 1e-6;

    /// The chip of a topology such as `v5e:2x2`; None for a generation that is not in the table.
    pub fn of(topology: &str) -> Option<&'static Chip> {
        let name = topology.split(':').next()?;
        CHIPS.iter().find(|chip| chip.name == name)
    }

    /// Operations a second of the vector units: 8 x 128 lanes, four units, in each core of a device.
    pub fn vector(&self) -> f64 {
        let cores = if matches!(self.name, "v4" | "v5p") { 2.0 } else { 1.0 };
        cores * 4096.0 * self.clock
    }

    /// Cycles that moving these bytes to or from HBM takes.
    pub fn hbm_cycles(&self, bytes: f64) -> f64 {
        bytes / self.hbm_bandwidth * self.clock
    }

    /// Cycles that these operations take at the matrix units' peak.
    pub fn matrix_cycles(&self, flops: f64) -> f64 {
        flops / self.peak * self.clock
    }
}
