//! Which parts of a server a restore means.

use super::super::s3_bucket::connection::bucket_name;
use super::super::s3_bucket::selection::Selection;
use crate::component::Request;
use crate::{Error, Result};

/// Parts of a backup.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// The configuration.
    pub(super) config: bool,
    /// Users, groups and policies.
    pub(super) iam: bool,
    /// All buckets' metadata, or of these.
    metadata: Option<Vec<String>>,
    /// All buckets' objects, or of these, each with keys.
    data: Option<Vec<(String, Option<String>)>>,
    until: Option<String>,
    /// Buckets under other names.
    renames: Vec<(String, String)>,
    /// Keys under other names, in a bucket.
    key_renames: Vec<(String, String, String)>,
}

fn wrong(text: &str) -> Error {
    Error::invalid(
        "component_select",
        format!("\"{text}\" selects nothing of MinIO"),
    )
    .with_hint("Write config, iam, bucket-metadata, bucket-metadata/BUCKET, data, data/BUCKET or data/BUCKET/KEY (PREFIX*), and until=TIME; a renaming is data/OLD=data/NEW.")
}

/// `data/BUCKET` or `data/BUCKET/KEY`.
fn bucket_and_key(text: &str) -> Option<(String, Option<&str>)> {
    let rest = text.strip_prefix("data/")?;
    let (bucket, key) = match rest.split_once('/') {
        Some((bucket, "")) => (bucket, None),
        Some((bucket, key)) => (bucket, Some(key)),
        None => (rest, None),
    };
    Some((bucket_name(bucket)?, key))
}

impl Wanted {
    /// Of a request.
    ///
    /// # Errors
    /// Kind Invalid, `component_select`.
    pub(super) fn parse(request: &Request) -> Result<Self> {
        let all = request.select.iter().all(|text| text.starts_with("until="));
        let mut own = Self {
            config: all,
            iam: all,
            metadata: all.then(Vec::new),
            data: all.then(Vec::new),
            ..Self::default()
        };
        for text in &request.select {
            match text.as_str() {
                "config" => own.config = true,
                "iam" => own.iam = true,
                "bucket-metadata" => own.metadata = Some(Vec::new()),
                "data" => own.data = Some(Vec::new()),
                text if text.starts_with("until=") => own.until = Some(text.to_owned()),
                text => {
                    if let Some(bucket) = text.strip_prefix("bucket-metadata/") {
                        let bucket = bucket_name(bucket).ok_or_else(|| wrong(text))?;
                        own.metadata.get_or_insert_default().push(bucket);
                    } else {
                        let (bucket, key) = bucket_and_key(text).ok_or_else(|| wrong(text))?;
                        let data = own.data.get_or_insert_default();
                        data.push((bucket, key.map(str::to_owned)));
                    }
                }
            }
        }
        for (old, new) in &request.rename {
            let from = bucket_and_key(old).ok_or_else(|| wrong(old))?;
            let to = bucket_and_key(new).ok_or_else(|| wrong(new))?;
            match (from, to) {
                ((from, None), (to, None)) => own.renames.push((from, to)),
                ((from, Some(old)), (to, Some(new))) if from == to => {
                    own.key_renames.push((from, old.to_owned(), new.to_owned()));
                }
                _ => return Err(wrong(new)),
            }
        }
        // What is not to be done later is refused now.
        for bucket in own.named() {
            own.keys(&bucket)?;
        }
        Ok(own)
    }

    /// Buckets that the request names.
    fn named(&self) -> Vec<String> {
        let data = self.data.iter().flatten().map(|(bucket, _)| bucket);
        let renames = self.key_renames.iter().map(|(bucket, ..)| bucket);
        data.chain(renames).cloned().collect()
    }

    /// Whether the metadata of `bucket` is meant.
    pub(super) fn metadata_of(&self, bucket: &str) -> bool {
        self.metadata
            .as_ref()
            .is_some_and(|some| some.is_empty() || some.iter().any(|own| own == bucket))
    }

    /// Whether any bucket's metadata is.
    pub(super) fn any_metadata(&self) -> bool {
        self.metadata.is_some()
    }

    /// Whether objects of `bucket` are meant.
    pub(super) fn data_of(&self, bucket: &str) -> bool {
        self.data
            .as_ref()
            .is_some_and(|some| some.is_empty() || some.iter().any(|(own, _)| own == bucket))
    }

    /// Which of them.
    ///
    /// # Errors
    /// Kind Invalid, `component_select`.
    pub(super) fn keys(&self, bucket: &str) -> Result<Selection> {
        let own = self.data.iter().flatten().filter(|(own, _)| own == bucket);
        let own: Vec<&Option<String>> = own.map(|(_, key)| key).collect();
        let mut select: Vec<String> = match own.iter().any(|key| key.is_none()) {
            true => Vec::new(),
            false => own.into_iter().flatten().cloned().collect(),
        };
        select.extend(self.until.clone());
        let renames: Vec<(String, String)> = self
            .key_renames
            .iter()
            .filter(|(own, ..)| own == bucket)
            .map(|(_, old, new)| (old.clone(), new.clone()))
            .collect();
        Selection::parse(&select, &renames)
    }

    /// The bucket that `bucket` is restored into.
    pub(super) fn target<'b>(&'b self, bucket: &'b str) -> &'b str {
        let renamed = self.renames.iter().find(|(old, _)| old == bucket);
        renamed.map_or(bucket, |(_, new)| new)
    }

    /// Refuses what the backup does not have.
    ///
    /// # Errors
    /// Kind Invalid, `component_select`.
    pub(super) fn check(&self, buckets: &[String]) -> Result<()> {
        let metadata = self.metadata.iter().flatten().cloned();
        let renames = self.renames.iter().map(|(old, _)| old.clone());
        let named = self.named().into_iter().chain(metadata).chain(renames);
        for bucket in named {
            if !buckets.contains(&bucket) {
                return Err(Error::invalid(
                    "component_select",
                    format!("the backup holds no bucket \"{bucket}\""),
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(select: &[&str], rename: &[(&str, &str)]) -> Result<Wanted> {
        Wanted::parse(&Request {
            select: select.iter().map(|s| (*s).to_owned()).collect(),
            rename: rename
                .iter()
                .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
                .collect(),
            ..Request::default()
        })
    }

    #[test]
    fn parts_are_told_apart() {
        let all = parse(&[], &[]).unwrap();
        assert!(all.config && all.iam && all.metadata_of("x") && all.data_of("x"));
        let iam = parse(&["iam"], &[]).unwrap();
        assert!(iam.iam && !iam.config && !iam.any_metadata() && !iam.data_of("x"));
        let some = parse(
            &[
                "data/docs/a*",
                "data/docs/b",
                "data/more",
                "bucket-metadata/docs",
            ],
            &[("data/more", "data/less")],
        )
        .unwrap();
        assert!(some.metadata_of("docs") && !some.metadata_of("more"));
        assert!(some.data_of("docs") && some.data_of("more") && !some.data_of("other"));
        let keys = some.keys("docs").unwrap();
        assert!(keys.target("a1").unwrap().is_some() && keys.target("b1").unwrap().is_none());
        assert!(some.keys("more").unwrap().is_whole());
        assert_eq!((some.target("more"), some.target("docs")), ("less", "docs"));
        assert!(some.check(&["docs".to_owned(), "more".to_owned()]).is_ok());
        assert!(some.check(&["docs".to_owned()]).is_err());
        let renamed = parse(&["data/docs"], &[("data/docs/a*", "data/docs/b*")]).unwrap();
        let keys = renamed.keys("docs").unwrap();
        assert_eq!(keys.target("a1").unwrap().unwrap(), "b1");
        for (select, rename) in [
            (vec!["users"], vec![]),
            (vec!["data/"], vec![]),
            (vec!["data/x"], vec![]),
            (vec!["bucket-metadata/"], vec![]),
            (vec!["until=x", "data/docs"], vec![]),
            (vec![], vec![("a", "b")]),
            (vec![], vec![("data/docs/a", "data/more/a")]),
        ] {
            let error = parse(&select, &rename).unwrap_err();
            assert_eq!(error.code(), "component_select", "{select:?}");
        }
    }
}
