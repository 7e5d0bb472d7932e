//! Compile options, and their encoding as XLA's `CompileOptionsProto`. The message is small and the fields in use are
//! few, so it is written by hand; a field that is left out has its default.

use crate::Result;
use crate::client::invalid;
use crate::types::OptionValue;

/// How to compile one program.
#[derive(Debug, Clone, PartialEq)]
pub struct CompileOptions {
    pub num_replicas: usize,
    pub num_partitions: usize,
    /// The device ids, one row per replica with one entry per partition. Without it the plugin chooses.
    pub device_assignment: Option<Vec<Vec<i64>>>,
    /// Whether the partitions run one program over sharded arrays, divided by XLA's SPMD partitioner.
    pub use_spmd_partitioning: bool,
    /// Whether shardings are in the Shardy dialect instead of in GSPMD attributes.
    pub use_shardy_partitioner: bool,
    /// XLA flags for this compilation alone, such as `xla_tpu_scoped_vmem_limit_kib`. The plugin refuses unknown ones.
    pub env_option_overrides: Vec<(String, OptionValue)>,
}

impl Default for CompileOptions {
    /// One device, no flags.
    fn default() -> Self {
        Self {
            num_replicas: 1,
            num_partitions: 1,
            device_assignment: None,
            use_spmd_partitioning: false,
            use_shardy_partitioner: false,
            env_option_overrides: Vec::new(),
        }
    }
}

impl CompileOptions {
    /// The serialized `CompileOptionsProto`.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut build = Message::default();
        // -1: the device comes from the assignment, not from here.
        build.int(1, -1);
        build.int(4, self.num_replicas as i64);
        build.int(5, self.num_partitions as i64);
        build.bool(6, self.use_spmd_partitioning);
        if let Some(assignment) = self.assignment()? {
            build.message(9, &assignment);
        }
        build.bool(19, self.use_shardy_partitioner);

        let mut options = Message::default();
        options.message(3, &build);
        for (name, value) in &self.env_option_overrides {
            let mut typed = Message::default();
            // The fields are a oneof, so a zero is written too.
            match value {
                OptionValue::Str(value) => typed.bytes(1, value.as_bytes()),
                OptionValue::Bool(value) => typed.int(2, i64::from(*value)),
                OptionValue::Int(value) => typed.int(3, *value),
                OptionValue::Float(value) => typed.double(4, *value),
            }
            let mut entry = Message::default();
            entry.bytes(1, name.as_bytes());
            entry.message(2, &typed);
            options.message(7, &entry);
        }
        Ok(options.0)
    }

    /// The `DeviceAssignmentProto`: per partition ("computation") the devices of its replicas.
    fn assignment(&self) -> Result<Option<Message>> {
        let (replicas, partitions) = (self.num_replicas, self.num_partitions);
        let Some(rows) = &self.device_assignment else { return Ok(None) };
        if rows.len() != replicas || rows.iter().any(|row| row.len() != partitions) {
            let message = format!(
                "the device assignment must be {replicas} replicas of {partitions} partitions: {rows:?}"
            );
            return Err(invalid("CompileOptions", message));
        }
        let mut assignment = Message::default();
        assignment.int(1, replicas as i64);
        assignment.int(2, partitions as i64);
        for partition in 0..partitions {
            let mut ids = Message::default();
            rows.iter().filter_map(|row| row.get(partition)).for_each(|&id| ids.varint(id as u64));
            let mut computation = Message::default();
            computation.message(1, &ids);
            assignment.message(3, &computation);
        }
        Ok(Some(assignment))
    }
}

/// A protobuf message under construction.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    const VARINT: u64 = 0;
    const FIXED64: u64 = 1;
    const BYTES: u64 = 2;

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn int(&mut self, field: u64, value: i64) {
        self.varint(field << 3 | Self::VARINT);
        // Negative numbers take ten bytes, as two's complement.
        self.varint(value as u64);
    }

    /// A flag outside a oneof, where false is the default.
    fn bool(&mut self, field: u64, value: bool) {
        if value {
            self.int(field, 1);
        }
    }

    fn double(&mut self, field: u64, value: f64) {
        self.varint(field << 3 | Self::FIXED64);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.varint(field << 3 | Self::BYTES);
        self.varint(value.len() as u64);
        self.0.extend(value);
    }

    fn message(&mut self, field: u64, value: &Self) {
        self.bytes(field, &value.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(options: &CompileOptions) -> String {
        options
            .encode()
            .map(|bytes| bytes.iter().map(|byte| format!("{byte:02x}")).collect())
            .unwrap_or_default()
    }

    /// The bytes are those that XLA's own serialization has for the same fields.
    #[test]
    fn encoding() {
        let one = "1a0f08ffffffffffffffffff0120012801";
        assert_eq!(hex(&CompileOptions::default()), one);

        let flags = [
            ("a", OptionValue::Str("s".into())),
            ("b", OptionValue::Bool(true)),
            ("c", OptionValue::Int(7)),
            ("d", OptionValue::Float(1.5)),
        ];
        let env_option_overrides = flags.map(|(name, value)| (name.to_owned(), value)).to_vec();
        let options = CompileOptions { env_option_overrides, ..Default::default() };
        let flags =
            "3a080a016112030a01733a070a0162120210013a070a0163120218073a0e0a0164120921000000000000f83f";
        assert_eq!(hex(&options), format!("{one}{flags}"));

        let options = CompileOptions {
            num_replicas: 4,
            num_partitions: 2,
            device_assignment: Some(vec![vec![0, 1], vec![2, 3], vec![4, 5], vec![6, 7]]),
            use_spmd_partitioning: true,
            use_shardy_partitioner: true,
            ..Default::default()
        };
        let assignment = "4a14080410021a060a04000204061a060a0401030507";
        assert_eq!(hex(&options), format!("1a2a08ffffffffffffffffff01200428023001{assignment}980101"));
    }

    #[test]
    fn a_ragged_assignment_is_an_error() {
        let options =
            CompileOptions { num_replicas: 2, device_assignment: Some(vec![vec![0]]), ..Default::default() };
        let error = options.encode().map_err(|error| error.message);
        assert_eq!(error, Err("the device assignment must be 2 replicas of 1 partitions: [[0]]".to_owned()));
    }
}
