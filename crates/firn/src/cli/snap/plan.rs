//! What would be done: `firn snap --dry-run`.

use super::super::context::Context;
use super::super::output::{self, Table};
use firn_disk::{Error, Result};
use firn_source::quiesce::Member;
use firn_source::{Attachment, Plan, PlannedDisk};
use serde_json::{Value, json};

/// What is planned for one machine.
#[derive(Debug, Default)]
pub struct MachinePlan {
    /// One for each of its sources.
    pub plans: Vec<Plan>,
}

impl MachinePlan {
    /// Asks every source of `member`.
    ///
    /// # Errors
    /// What a source says; `Invalid` where two disks have one name.
    pub fn of(member: &mut Member) -> Result<Self> {
        let request = &member.request;
        let plans = member.sources.iter_mut().map(|source| source.plan(request)).collect::<Result<Vec<_>>>()?;
        let planned = Self { plans };
        let names: Vec<&str> = planned.disks().map(|disk| disk.name.as_str()).collect();
        for (number, name) in names.iter().enumerate() {
            if names[..number].contains(name) {
                return Err(
                    Error::invalid(format!("two disks are called {name}")).hint("give each its own NAME=SOURCE")
                );
            }
        }
        Ok(planned)
    }

    fn disks(&self) -> impl Iterator<Item = &PlannedDisk> {
        self.plans.iter().flat_map(|plan| &plan.disks)
    }

    /// What sources want to be kept with the snapshot.
    pub fn attachments(&self) -> impl Iterator<Item = &Attachment> {
        self.plans.iter().flat_map(|plan| &plan.attachments)
    }

    /// Tells what the user should know.
    pub fn warn(&self) {
        for warning in self.plans.iter().flat_map(|plan| &plan.warnings) {
            eprintln!("firn: warning: {}", output::plain(warning));
        }
    }
}

/// Prints what would be done.
///
/// # Errors
/// The system's own when stdout cannot be written to.
pub fn print(context: &Context, machines: &[(&Member, &MachinePlan)]) -> Result<()> {
    if context.json {
        let documents: Vec<Value> = machines.iter().map(|(member, plan)| document(member, plan)).collect();
        return output::json(&json!({ "machines": documents }));
    }
    let mut table = Table::new(&["MACHINE", "DISK", "SIZE", "CHANGED", "WHY ALL"], &[false, false, true, true, false]);
    for (member, plan) in machines {
        for disk in plan.disks() {
            table.row(vec![
                member.request.machine.clone(),
                disk.name.clone(),
                output::size(disk.length),
                disk.dirty_bytes.map_or_else(|| "all".to_owned(), output::size),
                disk.why_all.clone().unwrap_or_default(),
            ]);
        }
    }
    table.print()?;
    for (member, plan) in machines {
        for (source, plan) in member.sources.iter().zip(&plan.plans) {
            output::line(&format!("\n{} from {}:", member.request.machine, output::plain(&source.uri())))?;
            if let Some(guest) = source.guest() {
                output::line(&format!("  freeze by {}", output::plain(&guest.describe())))?;
            }
            for step in &plan.steps {
                output::line(&format!("  {}", output::plain(step)))?;
            }
            for file in &plan.attachments {
                output::line(&format!("  keep {} with it", output::plain(&file.name)))?;
            }
        }
    }
    Ok(())
}

fn document(member: &Member, plan: &MachinePlan) -> Value {
    let disk = |disk: &PlannedDisk| {
        json!({
            "name": disk.name,
            "bytes": disk.length,
            "bytes_changed": disk.dirty_bytes,
            "why_all": disk.why_all,
        })
    };
    let sources = member.sources.iter().zip(&plan.plans).map(|(source, plan)| {
        json!({
            "uri": source.uri(),
            "guest": source.guest().map(|guest| guest.describe()),
            "steps": plan.steps,
            "warnings": plan.warnings,
            "disks": plan.disks.iter().map(disk).collect::<Vec<_>>(),
            "config": plan.attachments.iter().map(|file| &file.name).collect::<Vec<_>>(),
        })
    });
    json!({ "name": member.request.machine, "sources": sources.collect::<Vec<_>>() })
}
