//! Tables that are said to be like another one: the build and the tests read them with this file.
//!
//! An entry `"like": "other"` starts as a copy of that one. `"without"` takes calls out of the copy's filter, `"filter"`
//! adds to it, and every other key replaces the copy's.

use serde_json::{Map, Value};

/// `text`, an object of tables, with every `"like"` carried out.
pub fn expand(text: &str) -> Result<Map<String, Value>, String> {
    let tables: Map<String, Value> = serde_json::from_str(text).map_err(|e| e.to_string())?;
    tables
        .keys()
        .map(|name| Ok((name.clone(), table(&tables, name, tables.len())?)))
        .collect()
}

/// One table. `depth`: a chain that is longer than there are tables has no end.
fn table(tables: &Map<String, Value>, name: &str, depth: usize) -> Result<Value, String> {
    let of = |what: &str| format!("{name}: {what}");
    let entry = tables.get(name).ok_or_else(|| of("no such table"))?;
    let Some(like) = entry.get("like") else {
        return Ok(entry.clone());
    };
    let like = like.as_str().ok_or_else(|| of("like what?"))?;
    let depth = depth.checked_sub(1).ok_or_else(|| of("like itself"))?;
    let mut copy = table(tables, like, depth)?;
    let own = entry.as_object().ok_or_else(|| of("no object"))?;
    for (key, value) in own {
        match key.as_str() {
            "like" => {}
            "without" => {
                let gone = value.as_array().ok_or_else(|| of("without what?"))?;
                let filter = calls(&mut copy).ok_or_else(|| of("no filter"))?;
                for call in gone {
                    let before = filter.len();
                    filter.retain(|rule| rule.get("syscall") != Some(call));
                    if filter.len() == before {
                        return Err(of(&format!("{call} is not in {like}")));
                    }
                }
            }
            // Last, so that nothing of it is taken out again.
            "filter" => {}
            _ => copy[key] = value.clone(),
        }
    }
    if let Some(added) = own.get("filter").and_then(Value::as_array) {
        let filter = calls(&mut copy).ok_or_else(|| of("no filter"))?;
        filter.extend_from_slice(added);
    }
    Ok(copy)
}

fn calls(table: &mut Value) -> Option<&mut Vec<Value>> {
    table.get_mut("filter")?.as_array_mut()
}
