//! Several devices of one client run a program at once, each with its own arguments. A test of what ranks compute, not
//! of how fast: all memory is copied in and out.
#![allow(unsafe_code)] // Reads and writes the caller's memory; each block says why that is sound.

use super::{Argument, Executable, Output, Result};
use crate::host::{Array, TensorRef};
use crate::options::CompileSettings;
use crate::program::Program;
use torchtpu_ir::{CompileError, Stage};
use torchtpu_pjrt::{Buffer, Client, ExecuteOptions};

impl Executable {
    /// Compiles a program for all devices of a client.
    pub fn compile_spmd(
        program: &Program,
        client: &Client,
        settings: &CompileSettings,
    ) -> Result<Executable> {
        let ids: Vec<i64> = client.devices().iter().map(|device| device.id.into()).collect();
        Self::of_all_ranks(program, client, settings, false, &ids)
    }

    /// Compiles a program for devices of which other processes have the others: `assignment` has the id of each rank's.
    pub fn compile_rank(
        program: &Program,
        client: &Client,
        settings: &CompileSettings,
        zero_copy: bool,
        assignment: &[i64],
    ) -> Result<Executable> {
        let own = client.devices();
        let ours =
            assignment.iter().filter(|&&id| own.iter().any(|device| i64::from(device.id) == id)).count();
        if ours != 1 {
            let what =
                format!("graph `{}`: of the devices {assignment:?}, {ours} are this process's", program.name);
            return Err(CompileError::new(Stage::Compile, what).help("a process has one device of a program"));
        }
        Self::of_all_ranks(program, client, settings, zero_copy, assignment)
    }

    fn of_all_ranks(
        program: &Program,
        client: &Client,
        settings: &CompileSettings,
        zero_copy: bool,
        assignment: &[i64],
    ) -> Result<Executable> {
        let (wanted, there) = (program.devices(), assignment.len());
        if !program.is_of_all_ranks() {
            return Err(CompileError::new(
                Stage::Compile,
                format!(
                    "graph `{}` is what one rank traced, and others may have other numbers in theirs",
                    program.name
                ),
            )
            .help("torchtpu_dynamo.lower_spmd traces as every rank, and makes one program of it"));
        }
        if wanted != 1 && wanted != there {
            let what = format!("graph `{}` is for {wanted} ranks, not {there}", program.name);
            return Err(CompileError::new(Stage::Compile, what));
        }
        Self::of(&program.name, program.graph(), &program.interface, client, settings, zero_copy, assignment)
    }

    /// `call_spmd` on arrays of our own; the results are copies.
    pub fn run_spmd(&self, ranks: &mut [Vec<Argument<'_>>], seed: u64) -> Result<Vec<Vec<Array>>> {
        let tensors = ranks.iter().map(|args| self.tensors(args)).collect::<Result<Vec<_>>>()?;
        // SAFETY: the arrays are borrowed for this call, those that are written by nobody else.
        let outputs = unsafe { self.call_spmd(&tensors, seed) }?;
        Ok(outputs.into_iter().map(|of_rank| self.arrays(of_rank)).collect())
    }

    /// Runs the program on every device, with a list of arguments for each. All draw from the same seed.
    ///
    /// # Safety
    /// As `call`.
    pub unsafe fn call_spmd(&self, ranks: &[Vec<TensorRef<'_>>], seed: u64) -> Result<Vec<Vec<Output>>> {
        let devices = self.loaded.devices();
        if ranks.len() != devices.len() {
            return Err(CompileError::new(
                Stage::Run,
                format!("graph `{}` is for {} ranks, not {}", self.name, devices.len(), ranks.len()),
            ));
        }
        for (rank, args) in ranks.iter().enumerate() {
            self.check_args(args).map_err(|mut e| {
                e.message = format!("rank {rank}: {}", e.message);
                e
            })?;
        }
        self.check_written(ranks)?;
        let mut buffers: Vec<Vec<Buffer>> = Vec::with_capacity(ranks.len());
        for (args, &device) in ranks.iter().zip(devices) {
            // SAFETY: the caller's promise; the executable copies, so that nothing is on loan after this.
            let list =
                self.inputs.iter().zip(args).map(|(slot, arg)| unsafe { self.import(slot, arg, device) });
            let mut list = list.collect::<Result<Vec<Buffer>>>()?;
            if self.uses_seed {
                let state = self.client.buffer_from_slice(&[seed, 0u64], &[2], device);
                list.push(state.map_err(|e| self.fail(e))?);
            }
            buffers.push(list);
        }
        let lists: Vec<Vec<&Buffer>> = buffers.iter().map(|list| list.iter().collect()).collect();
        let lists: Vec<&[&Buffer]> = lists.iter().map(Vec::as_slice).collect();
        let (results, done) =
            self.loaded.execute_sharded(&lists, ExecuteOptions::default()).map_err(|e| self.fail(e))?;
        for event in &done {
            event.await_ready().map_err(|e| self.fail(e))?;
        }
        // SAFETY: mutated inputs may be written, by the caller's promise.
        ranks.iter().zip(results).map(|(args, results)| unsafe { self.deliver(args, results) }).collect()
    }

    /// What a rank writes is no other rank's.
    fn check_written(&self, ranks: &[Vec<TensorRef<'_>>]) -> Result<()> {
        for (i, slot) in self.inputs.iter().enumerate().filter(|(_, slot)| slot.mutated) {
            for (rank, args) in ranks.iter().enumerate() {
                let others = ranks[..rank].iter().flatten();
                if let Some(arg) = args.get(i)
                    && others
                        .into_iter()
                        .any(|other| super::overlaps(arg, other) || super::overlaps(other, arg))
                {
                    let what = format!(
                        "rank {rank}: input `{}` is written, and is another rank's too",
                        slot.spec.name
                    );
                    return Err(CompileError::new(Stage::Run, what).help("pass each rank a .clone() of it"));
                }
            }
        }
        Ok(())
    }
}
