//! Plans from strangers: whatever is changed, there is a plan or an error, and never a panic.

use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};

use super::*;

/// Reads a text, and verifies what comes of it.
fn read(text: &str) {
    if let Ok(plan) = Plan::from_mscclpp(text) {
        let _ = verify(&plan);
        let _ = Plan::read(&plan.to_text());
    }
}

/// The small fixtures: a proof of a large one for each case takes too long.
fn fixture(index: Index) -> &'static str {
    let small: Vec<_> = FIXTURES.iter().filter(|(_, text)| text.len() < 8000).collect();
    small[index.index(small.len())].1
}

/// All places in a JSON value, as paths.
fn paths(value: &Value, path: &str, into: &mut Vec<String>) {
    into.push(path.to_owned());
    match value {
        Value::Array(list) => {
            for (i, inner) in list.iter().enumerate() {
                paths(inner, &format!("{path}/{i}"), into);
            }
        }
        Value::Object(map) => {
            for (key, inner) in map {
                paths(inner, &format!("{path}/{key}"), into);
            }
        }
        _ => {}
    }
}

fn replacement() -> impl Strategy<Value = Value> {
    let numbers = prop_oneof![0_u64..6, Just(55), Just(65_536), Just(1 << 20), Just(u64::MAX)];
    let names = prop::sample::select(vec![
        "i",
        "o",
        "s",
        "memory",
        "port",
        "switch",
        "none",
        "nop",
        "put",
        "pws",
        "pwsf",
        "get",
        "copy",
        "signal",
        "wait",
        "flush",
        "re",
        "res",
        "rre",
        "rres",
        "ppkt",
        "rppkt",
        "cpkt",
        "upkt",
        "repkt",
        "respkt",
        "recpkt",
        "recspkt",
        "glres",
        "gstore",
        "gstorepkt",
        "pipeline",
        "barrier",
        "sem_acquire",
        "sem_release",
        "glre",
        "start",
        "allgather",
        "reducescatter",
        "alltoall",
        "allreduce",
        "min",
        "",
    ]);
    prop_oneof![
        4 => numbers.prop_map(Value::from),
        4 => names.prop_map(Value::from),
        1 => Just(Value::Null),
        1 => Just(json!([])),
        1 => Just(json!({})),
        1 => Just(json!(-1)),
        1 => any::<bool>().prop_map(Value::from),
    ]
}

/// What is done to a value at a place.
#[derive(Clone, Debug)]
enum Change {
    Replace(Value),
    /// Another value of the same plan.
    Copy(Index),
    /// Of a list: an element again, at another place.
    Repeat(Index, Index),
    /// Of a list or an object: an element left out.
    Remove(Index),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        3 => replacement().prop_map(Change::Replace),
        2 => any::<Index>().prop_map(Change::Copy),
        2 => any::<(Index, Index)>().prop_map(|(from, to)| Change::Repeat(from, to)),
        2 => any::<Index>().prop_map(Change::Remove),
    ]
}

fn apply(json: &mut Value, at: Index, change: Change) {
    let mut all = Vec::new();
    paths(json, "", &mut all);
    let place = &all[at.index(all.len())];
    let copied = match &change {
        Change::Copy(from) => json.pointer(&all[from.index(all.len())]).cloned(),
        _ => None,
    };
    let Some(value) = json.pointer_mut(place) else {
        return;
    };
    match (change, value) {
        (Change::Replace(new), value) => *value = new,
        (Change::Copy(_), value) => *value = copied.unwrap_or_default(),
        (Change::Repeat(from, to), Value::Array(list)) if !list.is_empty() => {
            let element = list[from.index(list.len())].clone();
            list.insert(to.index(list.len()), element);
        }
        (Change::Remove(nth), Value::Array(list)) if !list.is_empty() => {
            list.remove(nth.index(list.len()));
        }
        (Change::Remove(nth), Value::Object(map)) if !map.is_empty() => {
            let key = map.keys().nth(nth.index(map.len())).cloned();
            key.and_then(|key| map.remove(&key));
        }
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_change_of_bytes_panics(
        fixture_at in any::<Index>(),
        at in any::<Index>(),
        count in 0_usize..12,
        with in "[ -~]{0,12}",
    ) {
        let mut text = fixture(fixture_at).to_owned();
        let at = at.index(text.len());
        let end = (at + count).min(text.len());
        text.replace_range(at..end, &with);
        read(&text);
    }

    #[test]
    fn no_cut_or_digit_panics(fixture_at in any::<Index>(), at in any::<Index>(), digit in 0_u8..10) {
        let text = fixture(fixture_at);
        read(&text[..at.index(text.len())]);
        // The nth digit becomes another: the plan stays JSON, and says something else.
        let digits: Vec<usize> = text.match_indices(|c: char| c.is_ascii_digit()).map(|(i, _)| i).collect();
        let at = digits[at.index(digits.len())];
        let mut text = text.to_owned();
        text.replace_range(at..at + 1, &digit.to_string());
        read(&text);
    }

    #[test]
    fn no_change_of_values_panics(
        fixture_at in any::<Index>(),
        changes in prop::collection::vec((any::<Index>(), change()), 1..4),
    ) {
        let mut json: Value = serde_json::from_str(fixture(fixture_at)).unwrap();
        for (at, change) in changes {
            apply(&mut json, at, change);
        }
        read(&json.to_string());
    }

    #[test]
    fn no_text_panics(text in "\\PC*") {
        read(&text);
        let _ = Plan::read(&text);
        let _ = Plan::read(&format!("{{\"gpus\": [{text}]}}"));
    }
}
