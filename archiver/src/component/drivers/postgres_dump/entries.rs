//! Which entries of an archive's list belong to a table.

use super::manifest::Table;

/// The entries of `pg_restore --list` that belong to `tables`, in their order: definitions, data,
/// sequences, defaults, indexes, constraints, triggers, policies, grants, comments; and the extensions,
/// whose types the columns may have. Foreign keys are left out: what they refer to may not be there.
///
/// A line: `215; 1259 16385 TABLE public docs owner`.
pub(super) fn entries_of(list: &str, tables: &[&Table]) -> String {
    const KINDS: [&str; 17] = [
        "TABLE ATTACH",
        "TABLE DATA",
        "TABLE",
        "SEQUENCE OWNED BY",
        "SEQUENCE SET",
        "SEQUENCE",
        "DEFAULT",
        "INDEX ATTACH",
        "INDEX",
        "CHECK CONSTRAINT",
        "CONSTRAINT",
        "TRIGGER",
        "RULE",
        "ROW SECURITY",
        "POLICY",
        "ACL",
        "COMMENT",
    ];
    let mut kept = String::new();
    for line in list.lines() {
        let after = line
            .split_once("; ")
            .and_then(|(_, rest)| rest.splitn(3, ' ').nth(2));
        let Some(entry) = after else { continue };
        // "EXTENSION - vector": IF NOT EXISTS, and gone with nobody.
        let extension = entry.starts_with("EXTENSION ");
        let kind = KINDS.iter().find(|kind| {
            entry
                .strip_prefix(**kind)
                .is_some_and(|rest| rest.starts_with(' '))
        });
        let ours = kind.is_some_and(|kind| {
            let rest = entry.get(kind.len() + 1..).unwrap_or_default();
            tables.iter().any(|table| belongs(kind, rest, table))
        });
        if extension || ours {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

/// Whether `rest` (schema, name, owner) is of `table`.
fn belongs(kind: &str, rest: &str, table: &Table) -> bool {
    let Some(name) = rest.strip_prefix(&format!("{} ", table.schema)) else {
        return false;
    };
    // Names may hold blanks; an owner follows, and a constraint's or a trigger's own name before it.
    let is = |wanted: &str| {
        name.strip_prefix(wanted)
            .is_some_and(|rest| rest.starts_with(' '))
    };
    match kind {
        "INDEX" | "INDEX ATTACH" => table.indexes.iter().any(|index| is(index)),
        "SEQUENCE" | "SEQUENCE OWNED BY" | "SEQUENCE SET" => {
            table.sequences.iter().any(|sequence| is(sequence))
        }
        "ACL" | "COMMENT" => {
            let of = |what: &str, names: &[String]| {
                names.iter().any(|name| is(&format!("{what} {name}")))
            };
            let own = [table.name.clone()];
            of("TABLE", &own)
                || is(&format!("COLUMN {}", table.name))
                || name.starts_with(&format!("COLUMN {}.", table.name))
                || of("SEQUENCE", &table.sequences)
                || of("INDEX", &table.indexes)
        }
        _ => is(&table.name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tables_entries_are_found() {
        let list = ";\n; Archive\n\
            2; 3079 16384 EXTENSION - vector \n\
            3300; 0 0 COMMENT - EXTENSION vector \n\
            215; 1259 16385 TABLE public docs owner\n\
            216; 1259 16386 TABLE public docs_more owner\n\
            217; 1259 16387 SEQUENCE public docs_id_seq owner\n\
            3310; 0 0 SEQUENCE OWNED BY public docs_id_seq owner\n\
            3311; 2604 1 DEFAULT public docs id owner\n\
            3312; 0 16385 TABLE DATA public docs owner\n\
            3313; 0 16386 TABLE DATA public docs_more owner\n\
            3314; 2606 1 CONSTRAINT public docs docs_pkey owner\n\
            3315; 1259 2 INDEX public docs_idx owner\n\
            3316; 1259 3 INDEX public docs_more_idx owner\n\
            3317; 2606 4 FK CONSTRAINT public docs docs_fk owner\n\
            3318; 0 0 ACL public TABLE docs owner\n\
            3319; 0 0 ACL public TABLE docs_more owner\n\
            3320; 0 0 TABLE other docs owner\n";
        let table = Table {
            schema: "public".to_owned(),
            name: "docs".to_owned(),
            rows: 0,
            digest: String::new(),
            indexes: vec!["docs_idx".to_owned()],
            sequences: vec!["docs_id_seq".to_owned()],
        };
        let kept = entries_of(list, &[&table]);
        let numbers: Vec<&str> = kept
            .lines()
            .filter_map(|line| line.split(';').next())
            .collect();
        let expected = "2 215 217 3310 3311 3312 3314 3315 3318";
        assert_eq!(numbers.join(" "), expected);
    }
}
