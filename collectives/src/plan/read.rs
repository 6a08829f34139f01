//! Reading a plan in whichever form it comes.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::mscclpp::MscclppError;
use super::verify::{Defect, check_shape};
use super::{Plan, PlanJsonError, PlanTextError};

/// Why a plan could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadPlanError {
    /// In the text form; says the line.
    #[error(transparent)]
    Text(#[from] PlanTextError),
    /// In our JSON form.
    #[error(transparent)]
    Json(#[from] PlanJsonError),
    /// In MSCCL++'s JSON form.
    #[error(transparent)]
    Mscclpp(#[from] MscclppError),
    /// It is JSON, but of something else.
    #[error("this JSON is no plan: it has neither 'warpmesh_plan' nor MSCCL++'s 'gpus'")]
    NoPlan,
    /// It was read, but is not well-formed.
    #[error("the plan is not well-formed: {0}")]
    IllFormed(Box<Defect>),
}

/// What tells the JSON forms apart.
#[derive(Deserialize)]
struct Probe {
    warpmesh_plan: Option<IgnoredAny>,
    gpus: Option<IgnoredAny>,
}

impl Plan {
    /// Reads a plan in any of its forms: our text, our JSON, or MSCCL++'s JSON. All its numbers are
    /// in range and its operands fit; it is not proven: see [`super::verify::verify`].
    ///
    /// # Errors
    ///
    /// Says in which form it was read, and names the place.
    pub fn read(text: &str) -> Result<Self, ReadPlanError> {
        let plan = if text.trim_start().starts_with('{') {
            read_json(text)?
        } else {
            Self::from_text(text)?
        };
        check_shape(&plan).map_err(|defect| ReadPlanError::IllFormed(Box::new(defect)))?;
        Ok(plan)
    }
}

fn read_json(text: &str) -> Result<Plan, ReadPlanError> {
    let probe: Probe = serde_json::from_str(text).map_err(PlanJsonError::from)?;
    match probe {
        Probe { warpmesh_plan: Some(_), .. } => Ok(Plan::from_json(text)?),
        Probe { gpus: Some(_), .. } => Ok(Plan::from_mscclpp(text)?),
        _ => Err(ReadPlanError::NoPlan),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MSCCLPP: &str = include_str!("../../tests/plans/allreduce_one_shot_2.json");

    #[test]
    fn all_forms_are_told_apart() {
        let plan = Plan::read(MSCCLPP).unwrap();
        assert_eq!(plan, Plan::from_mscclpp(MSCCLPP).unwrap());
        assert_eq!(Plan::read(&plan.to_json()).unwrap(), plan);
        assert_eq!(Plan::read(&plan.to_text()).unwrap(), plan);
        assert_eq!(Plan::read(&format!("\n  {MSCCLPP}")).unwrap(), plan);
    }

    #[test]
    fn an_error_says_which_form_was_read() {
        assert!(matches!(Plan::read("hello"), Err(ReadPlanError::Text(_))));
        assert!(matches!(Plan::read(""), Err(ReadPlanError::Text(_))));
        assert!(matches!(Plan::read("{"), Err(ReadPlanError::Json(_))));
        assert!(matches!(Plan::read("{}"), Err(ReadPlanError::NoPlan)));
        let json = r#"{"warpmesh_plan": 9}"#;
        assert!(matches!(Plan::read(json), Err(ReadPlanError::Json(_))));
        let json = r#"{"gpus": []}"#;
        assert!(matches!(Plan::read(json), Err(ReadPlanError::Mscclpp(_))));
    }

    #[test]
    fn what_does_not_fit_is_found_while_reading() {
        let text = "warpmesh plan 1\nname x\ncollective all_reduce\nworld 1\nrank 0\n  \
                    copy 0: out[1] = in[0]";
        let error = Plan::read(text).unwrap_err();
        assert!(matches!(error, ReadPlanError::IllFormed(_)));
        assert!(error.to_string().contains("rank 0 has no output block 1"), "{error}");
    }
}
