//! What `pgark check` says of volumes and their engine.

use super::engine::Engine;
use super::helper::Leftovers;
use super::place::{self, Place};
use super::volume::{User, Volume, names};
use super::{DockerVolume, OnCapture, volume};
use crate::Result;
use crate::component::{CheckLine, Ground};

/// Databases by a part of their images' names, and what backs them up.
const DATABASES: [(&str, &str); 19] = [
    ("postgres", "the cluster, or kind postgres_dump"),
    ("postgis", "the cluster, or kind postgres_dump"),
    ("pgvector", "the cluster, or kind postgres_dump"),
    ("timescale", "the cluster, or kind postgres_dump"),
    ("redis", "kind redis"),
    ("valkey", "kind redis"),
    ("qdrant", "kind qdrant"),
    ("chroma", "kind chroma"),
    ("elasticsearch", "kind elasticsearch"),
    ("opensearch", "kind elasticsearch"),
    ("minio", "kinds minio and s3_bucket"),
    ("prometheus", "kind prometheus"),
    ("grafana", "kind grafana"),
    ("mysql", "its own dump, in before_backup"),
    ("mariadb", "its own dump, in before_backup"),
    ("mongo", "its own dump, in before_backup"),
    ("neo4j", "its own dump, in before_backup"),
    ("weaviate", "its own backup, in before_backup"),
    ("milvus", "its own backup, in before_backup"),
];

/// What backs up the database in an image, when there is one in it.
fn database(image: &str) -> Option<(&'static str, &'static str)> {
    // Without the registry, which may be called anything, and the version.
    let name = image.rsplit('/').next().unwrap_or(image);
    let name = name.split(['@', ':']).next().unwrap_or(name).to_lowercase();
    // Exporters and consoles of a database are none.
    let beside = [
        "exporter",
        "admin",
        "ui",
        "console",
        "insight",
        "commander",
        "backup",
    ];
    if name.split(['-', '_']).any(|part| beside.contains(&part)) {
        return None;
    }
    DATABASES.into_iter().find(|(part, _)| name.contains(part))
}

/// What is no failure, and should not be overlooked: a set that was restored must not wait for it to go.
fn warning(name: &str, detail: impl std::fmt::Display, hint: impl Into<String>) -> CheckLine {
    CheckLine {
        hint: hint.into(),
        ..CheckLine::well(name, format!("warning: {detail}"))
    }
}

/// See the module.
pub(super) fn check(driver: &DockerVolume) -> Vec<CheckLine> {
    const HINT: &str = "Look whether the engine runs, and at socket in [component.NAME].";
    let engine = match driver.engine(None) {
        Ok(engine) => engine,
        Err(error) => return vec![CheckLine::failed("engine", &error, HINT)],
    };
    let mut lines = vec![CheckLine::well(
        "engine",
        format!("{}, API {}, {}", engine.version, engine.api, engine.name()),
    )];
    lines.push(match Leftovers::find(&engine) {
        Ok(left) if left.is_empty() => CheckLine::well("leftovers", "none"),
        Ok(left) => warning(
            "leftovers",
            left,
            "The next backup removes them; \"docker ps -a\" shows them.",
        ),
        Err(error) => CheckLine::failed("leftovers", &error, HINT),
    });
    match volume::chosen(driver, &engine) {
        Err(error) => lines.push(CheckLine::failed("volumes", &error, HINT)),
        Ok(volumes) => {
            for volume in &volumes {
                let found = of_volume(driver, &engine, volume);
                let name = format!("volume {}", volume.name);
                match found {
                    Ok(found) => lines.extend(found),
                    Err(error) => lines.push(CheckLine::failed(&name, &error, HINT)),
                }
            }
        }
    }
    lines
}

fn of_volume(driver: &DockerVolume, engine: &Engine, volume: &Volume) -> Result<Vec<CheckLine>> {
    let name = format!("volume {}", volume.name);
    let how = match place::of(driver, engine, volume)? {
        Place::Directory(path) => format!("read in \"{}\"", path.display()),
        Place::Api => {
            "read through the engine's API: without extended attributes, holes and fractions of \
                       seconds, and whole each time"
                .to_owned()
        }
    };
    let users = volume::users(engine, &volume.name)?;
    let at_work: Vec<&User> = users.iter().filter(|user| user.is_at_work()).collect();
    let then = match (at_work.is_empty(), driver.settings.on_capture) {
        (true, _) => "no running container uses it".to_owned(),
        (false, OnCapture::Live) => format!(
            "{} write on while it is read: fuzzy",
            names(at_work.iter().copied())
        ),
        (false, OnCapture::Pause) => {
            format!("{} are paused meanwhile", names(at_work.iter().copied()))
        }
        (false, OnCapture::Stop) => {
            format!("{} are stopped meanwhile", names(at_work.iter().copied()))
        }
    };
    let mut lines = vec![CheckLine::well(&name, format!("{how}; {then}"))];
    let removed = at_work.iter().filter(|user| user.auto_remove);
    let removed: Vec<&User> = removed.copied().collect();
    if driver.settings.on_capture == OnCapture::Stop && !removed.is_empty() {
        let line = CheckLine::wrong(
            &name,
            format!("stopping would remove containers: {}", names(removed)),
            "Start them without --rm, or set on_capture = \"pause\".",
        );
        lines.push(line.of(Ground::Setup));
    }
    for user in &at_work {
        let Some((what, instead)) = database(&user.image) else {
            continue;
        };
        let torn = driver.settings.on_capture == OnCapture::Live;
        let detail = match torn {
            true => format!(
                "\"{}\" looks like {what}: a copy of its live files is torn",
                user.name
            ),
            false => format!(
                "\"{}\" looks like {what}, which recovers as after a crash",
                user.name
            ),
        };
        lines.push(match torn {
            true => warning(
                &name,
                detail,
                format!("Back it up with {instead}; or set on_capture = \"stop\"."),
            ),
            false => CheckLine::well(&name, detail),
        });
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn databases_are_known_by_their_images() {
        for (image, what) in [
            ("postgres:17", Some("postgres")),
            ("ghcr.io/x/pgvector:pg16", Some("pgvector")),
            ("docker.io/valkey/valkey@sha256:00", Some("valkey")),
            ("localhost:5000/bitnami/Redis", Some("redis")),
            ("chromadb/chroma", Some("chroma")),
            ("redis/web:1", None),
            ("prom/postgres-exporter", None),
            ("sha256:0000", None),
            ("", None),
        ] {
            assert_eq!(database(image).map(|found| found.0), what, "{image}");
        }
    }
}
