//! The JSON form of plans, for tools.

use serde::{Deserialize, Serialize};

use super::{Instruction, Plan, Program, Shape};

const VERSION: u32 = 1;

/// What is wrong with a plan's JSON.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanJsonError {
    /// Not JSON, or not a plan; says line and column.
    #[error("not a plan in JSON: {0}")]
    Syntax(#[from] serde_json::Error),
    /// A version that this library does not know.
    #[error("the plan is of version {0}; this library reads version {VERSION}")]
    Version(u32),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    warpmesh_plan: u32,
    shape: Shape,
    /// ranks, workers, instructions
    programs: Vec<Vec<Vec<Instruction>>>,
}

impl Plan {
    /// The JSON form. [`Plan::from_json`] reads it back to the same plan.
    pub fn to_json(&self) -> String {
        let programs = self.programs.iter().map(|program| program.workers.clone()).collect();
        let document = Document { warpmesh_plan: VERSION, shape: self.shape.clone(), programs };
        serde_json::to_string_pretty(&document).expect("a plan has string keys only")
    }

    /// Reads the JSON form. The result is well-formed, not proven: see [`super::verify::verify`].
    pub fn from_json(text: &str) -> Result<Self, PlanJsonError> {
        let document: Document = serde_json::from_str(text)?;
        if document.warpmesh_plan != VERSION {
            return Err(PlanJsonError::Version(document.warpmesh_plan));
        }
        let programs = document.programs.into_iter().map(|workers| Program { workers }).collect();
        Ok(Self { shape: document.shape, programs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_built_in_plan_survives_its_json() {
        for algorithm in crate::algorithms::all() {
            let plan = algorithm.plan(3, 1);
            assert_eq!(Plan::from_json(&plan.to_json()).unwrap(), plan);
        }
    }

    #[test]
    fn another_version_is_named() {
        let json = crate::algorithms::ALL[0].plan(2, 0).to_json();
        let json = json.replace("\"warpmesh_plan\": 1", "\"warpmesh_plan\": 9");
        assert!(matches!(Plan::from_json(&json), Err(PlanJsonError::Version(9))));
    }

    proptest! {
        #[test]
        fn no_mutation_of_a_plan_panics(at in 0_usize..100_000, with in "[ -~]{0,4}") {
            let mut json = crate::algorithms::ALL[4].plan(2, 0).to_json();
            let at = at % json.len();
            json.replace_range(at..at + 1, &with);
            if let Ok(plan) = Plan::from_json(&json) {
                let _ = crate::plan::verify::verify(&plan);
            }
        }
    }
}
