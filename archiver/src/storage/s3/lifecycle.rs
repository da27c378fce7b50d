//! The bucket's lifecycle rules: read, and changed so that the rules of others stay as they are.

use super::failure::{Cause, Failure};
use super::{Inner, content_md5};
use crate::storage::bucket::{Lifecycle, Rule};
use crate::{Error, Result};
use aws_sdk_s3::types::{
    AbortIncompleteMultipartUpload, BucketLifecycleConfiguration, ExpirationStatus,
    LifecycleExpiration, LifecycleRule, LifecycleRuleAndOperator, LifecycleRuleFilter,
    NoncurrentVersionExpiration, Transition, TransitionStorageClass,
};

fn days(days: Option<i32>) -> Option<u16> {
    days.and_then(|days| u16::try_from(days).ok())
}

/// The rule, if it says nothing that [`Rule`] cannot say.
fn understood(rule: &LifecycleRule) -> Option<Rule> {
    if rule.status() != &ExpirationStatus::Enabled
        || !rule.noncurrent_version_transitions().is_empty()
    {
        return None;
    }
    let mut found = Rule {
        id: rule.id()?.to_owned(),
        ..Rule::default()
    };
    // The old form, which some servers answer with.
    #[allow(deprecated)]
    let old = rule.prefix();
    found.prefix = old.unwrap_or_default().to_owned();
    let filter = rule.filter();
    if let Some(filter) = filter {
        if filter.tag().is_some() || filter.object_size_less_than().is_some() {
            return None;
        }
        if let Some(prefix) = filter.prefix() {
            found.prefix = prefix.to_owned();
        }
        found.bytes_above = filter
            .object_size_greater_than()
            .and_then(|n| u64::try_from(n).ok());
        if let Some(both) = filter.and() {
            if !both.tags().is_empty() || both.object_size_less_than().is_some() {
                return None;
            }
            found.prefix = both.prefix().unwrap_or_default().to_owned();
            found.bytes_above = both
                .object_size_greater_than()
                .and_then(|n| u64::try_from(n).ok());
        }
    }
    for transition in rule.transitions() {
        let class = transition.storage_class()?.as_str().to_owned();
        found.transitions.push((days(transition.days())?, class));
    }
    found.transitions.sort();
    if let Some(expiration) = rule.expiration() {
        found.expire_days = Some(days(expiration.days())?);
    }
    if let Some(expiration) = rule.noncurrent_version_expiration() {
        if expiration.newer_noncurrent_versions().is_some() {
            return None;
        }
        found.noncurrent_days = Some(days(expiration.noncurrent_days())?);
    }
    if let Some(abort) = rule.abort_incomplete_multipart_upload() {
        found.abort_uploads_days = Some(days(abort.days_after_initiation())?);
    }
    Some(found)
}

fn expressed(rule: &Rule) -> Result<LifecycleRule> {
    let failed = |e: aws_sdk_s3::error::BuildError| {
        Error::internal("s3_request", "could not make a lifecycle rule").with_source(e)
    };
    let size = rule.bytes_above.and_then(|n| i64::try_from(n).ok());
    let filter = match size {
        None => LifecycleRuleFilter::builder().prefix(&rule.prefix).build(),
        Some(size) => {
            let both = LifecycleRuleAndOperator::builder()
                .prefix(&rule.prefix)
                .object_size_greater_than(size)
                .build();
            LifecycleRuleFilter::builder().and(both).build()
        }
    };
    let mut made = LifecycleRule::builder()
        .id(&rule.id)
        .status(ExpirationStatus::Enabled)
        .filter(filter);
    for (after, class) in &rule.transitions {
        let class = TransitionStorageClass::from(class.as_str());
        let transition = Transition::builder()
            .days((*after).into())
            .storage_class(class);
        made = made.transitions(transition.build());
    }
    if let Some(after) = rule.expire_days {
        let expiration = LifecycleExpiration::builder().days(after.into());
        made = made.expiration(expiration.build());
    }
    if let Some(after) = rule.noncurrent_days {
        let expiration = NoncurrentVersionExpiration::builder().noncurrent_days(after.into());
        made = made.noncurrent_version_expiration(expiration.build());
    }
    if let Some(after) = rule.abort_uploads_days {
        let abort = AbortIncompleteMultipartUpload::builder().days_after_initiation(after.into());
        made = made.abort_incomplete_multipart_upload(abort.build());
    }
    made.build().map_err(failed)
}

impl Inner {
    fn lifecycle_rules(&self) -> Result<Vec<LifecycleRule>> {
        let permission = "s3:GetLifecycleConfiguration";
        let operation = self.operation("read", permission, "lifecycle rules", 0);
        self.block(&operation, async |client, _| {
            let request = client
                .get_bucket_lifecycle_configuration()
                .bucket(&self.settings.bucket);
            match Box::pin(request.send()).await {
                Ok(answer) => Ok(answer.rules().to_vec()),
                Err(error) => match Failure::from_sdk(&error) {
                    failure if failure.cause == Cause::NoRules => Ok(Vec::new()),
                    failure => Err(failure),
                },
            }
        })
    }

    pub(super) fn lifecycle(&self) -> Result<Lifecycle> {
        let mut lifecycle = Lifecycle::default();
        for rule in self.lifecycle_rules()? {
            match understood(&rule) {
                Some(rule) => lifecycle.rules.push(rule),
                None => {
                    let id = rule.id().unwrap_or_default().to_owned();
                    lifecycle.foreign.push(id);
                }
            }
        }
        Ok(lifecycle)
    }

    pub(super) fn set_lifecycle(&self, own: &str, rules: &[Rule]) -> Result<()> {
        let is_own = |rule: &LifecycleRule| rule.id().is_some_and(|id| id.starts_with(own));
        let before = self.lifecycle_rules()?;
        let others = before.iter().filter(|rule| !is_own(rule));
        let others: Vec<LifecycleRule> = others.cloned().collect();
        let mut all = others.clone();
        for rule in rules {
            all.push(expressed(rule)?);
        }
        self.put_rules(all)?;
        match self.is_kept(own, rules, &others) {
            Ok(()) => Ok(()),
            // Better no rule than one that means something else.
            Err(error) => match self.put_rules(before) {
                Ok(()) => Err(error),
                Err(second) => Err(error.with_detail(format!(
                    "And the rules from before could not be put back: {second}."
                ))),
            },
        }
    }

    fn put_rules(&self, rules: Vec<LifecycleRule>) -> Result<()> {
        let permission = "s3:PutLifecycleConfiguration";
        let operation = self.operation("change", permission, "lifecycle rules", 0);
        if rules.is_empty() {
            return self.block(&operation, async |client, _| {
                let request = client
                    .delete_bucket_lifecycle()
                    .bucket(&self.settings.bucket);
                match Box::pin(request.send()).await {
                    Ok(_) => Ok(()),
                    Err(error) => Err(Failure::from_sdk(&error)),
                }
            });
        }
        let configuration = BucketLifecycleConfiguration::builder()
            .set_rules(Some(rules))
            .build()
            .map_err(|e| {
                Error::internal("s3_request", "could not make lifecycle rules").with_source(e)
            })?;
        self.block(&operation, async |client, _| {
            let request = client
                .put_bucket_lifecycle_configuration()
                .bucket(&self.settings.bucket)
                .lifecycle_configuration(configuration.clone())
                .customize()
                .mutate_request(content_md5::add);
            match Box::pin(request.send()).await {
                Ok(_) => Ok(()),
                Err(error) => Err(Failure::from_sdk(&error)),
            }
        })
    }

    /// Some servers take what they do not understand and leave it out: a rule whose condition is gone
    /// would reach further than it was meant to.
    fn is_kept(&self, own: &str, rules: &[Rule], foreign: &[LifecycleRule]) -> Result<()> {
        let after = self.lifecycle_rules()?;
        let names = |rules: &[LifecycleRule]| {
            let others = rules.iter().filter_map(LifecycleRule::id);
            let mut names: Vec<String> = others
                .filter(|id| !id.starts_with(own))
                .map(str::to_owned)
                .collect();
            names.sort();
            names
        };
        let differs = rules.iter().find(|wanted| {
            let found = after.iter().filter_map(understood);
            !found.into_iter().any(|found| found == **wanted)
        });
        let lost = names(foreign) != names(&after);
        if differs.is_none() && !lost {
            return Ok(());
        }
        let what = differs.map_or("a rule of somebody else", |rule| rule.id.as_str());
        Err(Error::unavailable(
            "lifecycle_not_kept",
            format!("{} does not give back \"{what}\" as it was given", self.place),
        )
        .with_hint("The server does not know all of what the rules say. The rules are as they were before. Leave the parts out that the server does not know: --coldest none."))
    }
}
