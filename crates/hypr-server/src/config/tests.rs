use super::*;

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

#[test]
fn each_source_wins_over_the_one_before_it() {
    let toml = file("[server]\nport = 1\nmax_connections = 2\n[model]\nbase_model = \"file\"\n");
    let environment = pairs(&[("HYPRSTREAM_SERVER_PORT", "3"), ("HYPRSTREAM_MODEL_BASE_MODEL", "env"), ("PATH", "/")]);
    let config = Config::load(Some(toml.path()), environment, &pairs(&[("server.port", "4")])).unwrap();
    assert_eq!(config.server.port, 4);
    assert_eq!(config.model.base_model.as_deref(), Some("env"));
    assert_eq!(config.server.max_connections, 2);
    assert_eq!(config.server.host, IpAddr::from([127, 0, 0, 1]));
}

#[test]
fn a_model_id_of_digits_stays_text() {
    let config = Config::load(None, pairs(&[("HYPRSTREAM_MODEL_BASE_MODEL", "7")]), &[]).unwrap();
    assert_eq!(config.model.base_model.as_deref(), Some("7"));
}

#[test]
fn unknown_keys_name_the_closest_one() {
    let toml = file("[server]\nprot = 1\n");
    let error = Config::load(Some(toml.path()), [], &[]).unwrap_err();
    assert!(error.message().contains("`server.prot`") && error.message().contains("`server.port`"), "{error}");

    let toml = file("[server]\nqueue_depth = 1\n");
    let error = Config::load(Some(toml.path()), [], &[]).unwrap_err();
    assert!(error.message().contains("did you mean `engine.queue_depth`"), "{error}");

    let toml = file("port = 1\n");
    let error = Config::load(Some(toml.path()), [], &[]).unwrap_err();
    assert!(error.message().contains("did you mean `server.port`"), "{error}");

    let error = Config::load(None, pairs(&[("HYPRSTREAM_ENGINE_THREAD", "2")]), &[]).unwrap_err();
    assert!(error.message().contains("`HYPRSTREAM_ENGINE_THREADS`"), "{error}");

    let error = Config::load(None, [], &pairs(&[("query.memory", "2")])).unwrap_err();
    assert!(error.message().contains("`query.memory_limit_mb`"), "{error}");
}

#[test]
fn variables_of_other_programs_are_passed_over() {
    let others = pairs(&[("HYPRSTREAM_BIN", "x"), ("HYPRSTREAM_TEST_MODELS", "y"), ("SERVER_PORT", "z")]);
    assert_eq!(Config::load(None, others, &[]).unwrap(), Config::default());
}

#[test]
fn wrong_values_are_refused_by_name() {
    let error = Config::load(None, pairs(&[("HYPRSTREAM_SERVER_PORT", "many")]), &[]).unwrap_err();
    assert!(error.message().contains("server.port"), "{error}");
    let error = Config::load(None, [], &pairs(&[("server.max_connections", "0")])).unwrap_err();
    assert!(error.message().contains("`server.max_connections`"), "{error}");
    let error = Config::load(Some(Path::new("/nonexistent.toml")), [], &[]).unwrap_err();
    assert_eq!(error.kind(), hypr_common::ErrorKind::NotFound);
}

#[test]
fn listen_is_host_and_port() {
    let [host, port] = listen_overrides("[::1]:0").unwrap();
    assert_eq!((host.1.as_str(), port.1.as_str()), ("::1", "0"));
    assert_eq!(listen_overrides("localhost:80").unwrap()[0].1, "127.0.0.1");
    for malformed in ["8080", "host", "a:b", "127.0.0.1:99999"] {
        assert!(listen_overrides(malformed).unwrap_err().message().contains(malformed));
    }
}

#[test]
fn every_key_is_documented_and_every_documented_key_exists() {
    let page = include_str!("../../../../docs/configuration.md");
    let documented: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|line| line.split('`').next())
        .filter(|key| key.contains('.'))
        .collect();
    assert_eq!(documented, KEYS);
    for key in KEYS {
        assert!(page.contains(&variable_of(key)), "{key} lacks its environment variable");
    }
}

#[test]
fn a_list_is_written_in_the_file_and_with_commas_in_a_variable() {
    let toml = file("[copy]\nallowed_paths = [\"/srv/a\", \"s3://bucket/b/\"]\n");
    let config = Config::load(Some(toml.path()), [], &[]).unwrap();
    assert_eq!(config.copy.allowed_paths, ["/srv/a", "s3://bucket/b/"]);
    let config = Config::load(None, pairs(&[("HYPRSTREAM_COPY_ALLOWED_PATHS", "/srv/a, s3://b/")]), &[]).unwrap();
    assert_eq!(config.copy.allowed_paths, ["/srv/a", "s3://b/"]);
    assert!(Config::default().copy.allowed_paths.is_empty(), "nothing is allowed without being asked for");
}

#[test]
fn the_kernel_level_is_one_that_exists() {
    let level = |name: &str| Config::load(None, pairs(&[("HYPRSTREAM_ENGINE_CPU_LEVEL", name)]), &[]);
    assert_eq!(level("portable").unwrap().engine.cpu_level.as_deref(), Some("portable"));
    let error = level("sse").unwrap_err();
    assert!(error.message().contains("portable, avx2, avx512, amx or neon"), "{error}");
}
