//! Listings: every version of every key, newest first, as the server has them.

use super::{Cause, Failure, Objects, time, unquoted};
use crate::{Error, Result};
use aws_sdk_s3::Client;
use aws_sdk_s3::operation::list_object_versions::ListObjectVersionsOutput;
use aws_sdk_s3::types::EncodingType;
use chrono::{DateTime, Utc};
use std::collections::VecDeque;

/// A version of an object, or a delete marker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The object's key.
    pub key: String,
    /// `null` for what was put while the bucket kept no versions; `None`: the server knows none.
    pub version: Option<String>,
    /// Whether it is what a GET of the key finds.
    pub is_latest: bool,
    /// Whether it is a delete marker.
    pub is_marker: bool,
    /// Bytes.
    pub size: u64,
    /// The entity tag, without quotes.
    pub etag: String,
    /// When the server says that it came.
    pub modified: DateTime<Utc>,
}

/// Where a page begins: after this key and version.
type Mark = (Option<String>, Option<String>);

/// A page of a listing.
struct Page {
    versions: Vec<Listed>,
    markers: Vec<Listed>,
    next: Option<Mark>,
}

/// Every key with its versions, newest first; keys in the server's order.
pub struct Versions<'a> {
    objects: &'a Objects,
    prefix: String,
    /// Ends with the first other key.
    only: Option<String>,
    next: Option<Mark>,
    /// Read and not handed out: versions and markers, each in the server's order.
    versions: VecDeque<Listed>,
    markers: VecDeque<Listed>,
    done: bool,
}

impl Objects {
    /// Every key below `prefix`.
    #[must_use]
    pub fn versions(&self, prefix: &str) -> Versions<'_> {
        Versions {
            objects: self,
            prefix: prefix.to_owned(),
            only: None,
            next: Some((None, None)),
            versions: VecDeque::new(),
            markers: VecDeque::new(),
            done: false,
        }
    }

    /// The versions of one key, newest first.
    ///
    /// # Errors
    /// The server's.
    pub fn versions_of(&self, key: &str) -> Result<Vec<Listed>> {
        let mut all = self.versions(key);
        all.only = Some(key.to_owned());
        match all.next() {
            Some(Ok(group)) if group.first().is_some_and(|first| first.key == key) => Ok(group),
            Some(Err(error)) => Err(error),
            _ => Ok(Vec::new()),
        }
    }

    fn page(&self, prefix: &str, from: &Mark, most: Option<i32>) -> Result<Page> {
        let operation = self.operation("list", "s3:ListBucketVersions", prefix, 0);
        self.block(&operation, async |client| {
            let request = client
                .list_object_versions()
                .bucket(self.bucket())
                .prefix(prefix)
                .encoding_type(EncodingType::Url)
                .set_max_keys(most)
                .set_key_marker(from.0.clone())
                .set_version_id_marker(from.1.clone());
            match Box::pin(request.send()).await {
                Ok(answer) => page_of(&answer),
                Err(error) => match Failure::from_sdk(&error) {
                    // A server without versions.
                    failure if failure.cause == Cause::NotImplemented => {
                        self.plain_page(client, prefix, from).await
                    }
                    failure => Err(failure),
                },
            }
        })
    }

    async fn plain_page(
        &self,
        client: &Client,
        prefix: &str,
        from: &Mark,
    ) -> Result<Page, Failure> {
        let request = client
            .list_objects_v2()
            .bucket(self.bucket())
            .prefix(prefix)
            .encoding_type(EncodingType::Url)
            .set_continuation_token(from.0.clone());
        let sent = Box::pin(request.send()).await;
        let answer = sent.map_err(|error| Failure::from_sdk(&error))?;
        let is_url = answer.encoding_type() == Some(&EncodingType::Url);
        let mut versions = Vec::new();
        for object in answer.contents() {
            versions.push(Listed {
                key: decoded(object.key(), is_url)?,
                version: None,
                is_latest: true,
                is_marker: false,
                size: size(object.size())?,
                etag: unquoted(object.e_tag()),
                modified: time(object.last_modified()),
            });
        }
        let next = match answer.is_truncated() {
            Some(true) => {
                let token = answer.next_continuation_token().map(str::to_owned);
                Some(token.ok_or_else(|| {
                    Failure::foreign("A page of the listing says that more follows, and not where")
                })?)
            }
            _ => None,
        };
        Ok(Page {
            versions,
            markers: Vec::new(),
            next: next.map(|token| (Some(token), None)),
        })
    }
}

fn size(size: Option<i64>) -> Result<u64, Failure> {
    super::super::requests::size(size)
}

fn page_of(answer: &ListObjectVersionsOutput) -> Result<Page, Failure> {
    let is_url = answer.encoding_type() == Some(&EncodingType::Url);
    let mut versions = Vec::with_capacity(answer.versions().len());
    for found in answer.versions() {
        versions.push(Listed {
            key: decoded(found.key(), is_url)?,
            version: found.version_id().map(str::to_owned),
            is_latest: found.is_latest().unwrap_or(false),
            is_marker: false,
            size: size(found.size())?,
            etag: unquoted(found.e_tag()),
            modified: time(found.last_modified()),
        });
    }
    let mut markers = Vec::with_capacity(answer.delete_markers().len());
    for found in answer.delete_markers() {
        markers.push(Listed {
            key: decoded(found.key(), is_url)?,
            version: found.version_id().map(str::to_owned),
            is_latest: found.is_latest().unwrap_or(false),
            is_marker: true,
            size: 0,
            etag: String::new(),
            modified: time(found.last_modified()),
        });
    }
    let next = match answer.is_truncated() {
        Some(true) => {
            let last = [versions.last(), markers.last()];
            let last = last.into_iter().flatten().map(|l| l.key.as_str());
            let key = next_key(answer.next_key_marker(), last, is_url)?;
            let version = answer.next_version_id_marker();
            Some((Some(key), version.map(str::to_owned)))
        }
        _ => None,
    };
    Ok(Page {
        versions,
        markers,
        next,
    })
}

/// The key that the next page begins after. Some servers (radosgw) do not encode it as they do the others: so it
/// is one of the keys that came last.
fn next_key<'k>(
    told: Option<&str>,
    last: impl Iterator<Item = &'k str>,
    is_url: bool,
) -> Result<String, Failure> {
    let plain = decoded(told, is_url);
    let last: Vec<&str> = last.collect();
    let is = |key: &str| last.contains(&key);
    match (told, plain) {
        (_, Ok(plain)) if is(&plain) => Ok(plain),
        (Some(told), _) if is(told) => Ok(told.to_owned()),
        (_, plain) => plain,
    }
}

/// A key of an answer that was asked for in URL encoding: XML cannot hold every key.
fn decoded(key: Option<&str>, is_url: bool) -> Result<String, Failure> {
    let foreign = || Failure::foreign("The listing holds a key that cannot be read");
    let key = key.ok_or_else(foreign)?;
    if !is_url {
        return Ok(key.to_owned());
    }
    let mut bytes = Vec::with_capacity(key.len());
    let mut rest = key.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                let (high, low) = (digit(), digit());
                let value = high.zip(low).map(|(high, low)| high * 16 + low);
                bytes.push(
                    value
                        .and_then(|v| u8::try_from(v).ok())
                        .ok_or_else(foreign)?,
                );
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8(bytes).map_err(|_| foreign())
}

impl Versions<'_> {
    fn read(&mut self) -> Result<()> {
        let Some(from) = self.next.take() else {
            return Ok(());
        };
        let page = self.objects.page(&self.prefix, &from, None)?;
        if page.next.as_ref() == Some(&from) {
            return Err(Error::unavailable(
                "s3_unexpected_reply",
                format!(
                    "the listing of \"{}\" in {} does not end",
                    self.prefix,
                    self.objects.place()
                ),
            )
            .with_hint(
                "The server answers one page again and again: check it with another client.",
            ));
        }
        self.next = page.next;
        self.versions.extend(page.versions);
        self.markers.extend(page.markers);
        Ok(())
    }

    /// The first key that is held.
    fn first(&self) -> Option<&str> {
        let heads = [self.versions.front(), self.markers.front()];
        heads.into_iter().flatten().map(|l| l.key.as_str()).min()
    }

    /// Whether the versions of `key` may go on in a page that was not read yet.
    fn may_go_on(&self, key: &str) -> bool {
        self.next.is_some()
            && [self.versions.back(), self.markers.back()]
                .into_iter()
                .flatten()
                .all(|last| last.key.as_str() <= key)
    }

    fn group(&mut self) -> Result<Option<Vec<Listed>>> {
        while self.first().is_none() && self.next.is_some() {
            self.read()?;
        }
        let Some(key) = self.first().map(str::to_owned) else {
            return Ok(None);
        };
        if self.only.as_ref().is_some_and(|only| *only != key) {
            return Ok(None);
        }
        while self.may_go_on(&key) {
            self.read()?;
        }
        let versions = taken(&mut self.versions, &key);
        let markers = taken(&mut self.markers, &key);
        merged(versions, markers, |after| self.after(&key, after)).map(Some)
    }

    /// Whether a marker is what comes after this version of the key.
    fn after(&self, key: &str, version: &Listed) -> Result<bool> {
        let from = (Some(key.to_owned()), version.version.clone());
        let page = self.objects.page(&self.prefix, &from, Some(1))?;
        Ok(page.markers.first().is_some_and(|marker| marker.key == key))
    }
}

fn taken(from: &mut VecDeque<Listed>, key: &str) -> VecDeque<Listed> {
    let mut group = VecDeque::new();
    while from.front().is_some_and(|first| first.key == key) {
        group.extend(from.pop_front());
    }
    group
}

/// Both in one order, newest first. The SDK tells versions and markers apart and forgets how they stood
/// among each other: times tell, and where they are the same the server does (`is_marker_after`).
fn merged(
    mut versions: VecDeque<Listed>,
    mut markers: VecDeque<Listed>,
    is_marker_after: impl Fn(&Listed) -> Result<bool>,
) -> Result<Vec<Listed>> {
    let mut all: Vec<Listed> = Vec::with_capacity(versions.len() + markers.len());
    loop {
        let marker_first = match (versions.front(), markers.front()) {
            (None, None) => return Ok(all),
            (Some(_), None) => false,
            (None, Some(_)) => true,
            (Some(version), Some(marker)) if version.modified == marker.modified => {
                match all.last() {
                    _ if marker.is_latest => true,
                    _ if version.is_latest => false,
                    Some(last) => is_marker_after(last)?,
                    None => false,
                }
            }
            (Some(version), Some(marker)) => {
                !version.is_latest && (marker.is_latest || marker.modified > version.modified)
            }
        };
        let from = if marker_first {
            &mut markers
        } else {
            &mut versions
        };
        all.extend(from.pop_front());
    }
}

impl Iterator for Versions<'_> {
    type Item = Result<Vec<Listed>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let group = self.group().transpose();
        self.done = !matches!(group, Some(Ok(_)));
        group
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(version: &str, at: i64, is_marker: bool, is_latest: bool) -> Listed {
        Listed {
            key: "k".to_owned(),
            version: Some(version.to_owned()),
            is_latest,
            is_marker,
            size: 0,
            etag: String::new(),
            modified: DateTime::from_timestamp(at, 0).unwrap(),
        }
    }

    fn order(all: &[Listed]) -> String {
        all.iter().map(|l| l.version.clone().unwrap()).collect()
    }

    #[test]
    fn versions_and_markers_come_in_one_order() {
        // Newest first: d (marker, latest), c, b (marker), a; c and b within one second.
        let versions = [listed("c", 5, false, false), listed("a", 1, false, false)];
        let markers = [listed("d", 5, true, true), listed("b", 5, true, false)];
        for (marker_next, expected) in [(true, "dbca"), (false, "dcba")] {
            let asked = std::cell::Cell::new(0);
            let all = merged(versions.clone().into(), markers.clone().into(), |last| {
                asked.set(asked.get() + 1);
                Ok(marker_next && last.version.as_deref() == Some("d"))
            });
            assert_eq!(order(&all.unwrap()), expected);
            assert!(asked.get() >= 1);
        }
        let none = |_: &Listed| -> Result<bool> { panic!("times tell") };
        let all = merged(
            [listed("b", 3, false, false)].into(),
            [listed("c", 4, true, true), listed("a", 2, true, false)].into(),
            none,
        );
        assert_eq!(order(&all.unwrap()), "cba");
    }

    #[test]
    fn pages_go_on_where_they_ended() {
        let next = |told: &str, last: &[&str]| {
            next_key(Some(told), last.iter().copied(), true).map_err(|_| ())
        };
        assert_eq!(next("a%2Bb", &["a+b"]).unwrap(), "a+b");
        assert_eq!(next("a+b%25", &["x", "a+b%25"]).unwrap(), "a+b%25");
        assert_eq!(next("a%", &["a%"]).unwrap(), "a%");
        assert_eq!(next("a+b", &["other"]).unwrap(), "a b");
        assert!(next("a%", &["other"]).is_err());
    }

    #[test]
    fn keys_that_xml_cannot_hold_are_read() {
        let read = |key: &str| decoded(Some(key), true).map_err(|_| ());
        assert_eq!(read("a%0Ab+c%2B%C3%A9/").unwrap(), "a\nb c+\u{e9}/");
        for bad in ["%", "%4", "%zz", "%FF"] {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert_eq!(
            decoded(Some("a+%41"), false).map_err(|_| ()).unwrap(),
            "a+%41"
        );
        assert!(decoded(None, true).is_err());
    }
}
