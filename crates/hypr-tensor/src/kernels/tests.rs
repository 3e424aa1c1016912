use super::*;

#[test]
fn levels_have_names() {
    for level in Level::ALL {
        assert_eq!(Level::parse(level.name()).unwrap(), level);
    }
    assert!(Level::parse("sse").is_err());
    assert!(detect().is_supported());
}
