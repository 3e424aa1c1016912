//! Statements that find nearest rows, against the same statements as an ordinary sort.

use crate::harness::Fixture;

/// `rows` rows of `VECTOR(6)`, with a condition column `id % 10`.
async fn filled(rows: usize) -> Fixture {
    let fixture = Fixture::new().await;
    fixture.affected("CREATE TABLE t (id BIGINT, tenth BIGINT, v VECTOR(6))").await;
    fixture.affected(&insert(1, rows)).await;
    fixture
}

fn insert(from: usize, to: usize) -> String {
    format!(
        "INSERT INTO t SELECT i, i % 10, ARRAY[sin(i), cos(i * 1.7), sin(i * 0.37), cos(i * 0.11), sin(i * 2.9), \
         cos(i * 5.3)] FROM (SELECT value AS i FROM generate_series({from}, {to}))"
    )
}

const QUERIES: [&str; 4] = [
    "ARRAY[0.3, 0.1, -0.2, 0.9, 0.5, -0.6]",
    "ARRAY[-1, 1, 1, -1, 0.2, 0.4]",
    "'[0.1,0.2,0.3,0.4,0.5,0.6]'",
    "ARRAY[1, 0, 0, 0, 0, 0]",
];
const ORDERS: [&str; 4] = [
    "cosine_distance(v, {q})",
    "l2_distance({q}, v)",
    "cosine_similarity(v, {q}) DESC NULLS LAST",
    "inner_product(v, {q}) DESC NULLS LAST",
];

/// The share of rows that the search finds of those that the sort does. `+ 0` hides the distance from the rule.
async fn recall(fixture: &Fixture, condition: &str) -> f64 {
    let (mut hits, mut wanted) = (0, 0);
    for order in ORDERS {
        for query in QUERIES {
            let key = order.replace("{q}", query);
            let (call, direction) = key.split_at(key.find(')').unwrap() + 1);
            let statement =
                |call: &str| format!("SELECT id, {call} FROM t {condition} ORDER BY {call}{direction} LIMIT 10");
            let plan = fixture.lines(&format!("EXPLAIN {}", statement(call))).await.join("\n");
            assert!(plan.contains("NearestExec"), "{plan}");
            let found = fixture.lines(&statement(call)).await;
            let sorted = fixture.lines(&statement(&format!("({call} + 0)"))).await;
            wanted += sorted.len();
            hits += sorted.iter().filter(|row| found.contains(row)).count();
        }
    }
    hits as f64 / wanted as f64
}

async fn settle(fixture: &Fixture) {
    fixture.database.table("public", "t").unwrap().settle_indexes().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_table_gives_what_a_sort_gives() {
    let fixture = filled(700).await;
    for condition in ["", "WHERE tenth = 3", "WHERE tenth <> 4 AND id > 100"] {
        assert_eq!(recall(&fixture, condition).await, 1.0, "{condition}");
    }
    fixture.database.flush().await.unwrap();
    assert_eq!(recall(&fixture, "WHERE tenth < 5").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_table_is_searched_in_its_index_with_conditions_and_new_rows() {
    let fixture = filled(5000).await;
    // Every row is compared until the index is there.
    assert!(recall(&fixture, "").await >= 0.95);
    settle(&fixture).await;
    let plan =
        fixture.lines(&format!("EXPLAIN SELECT id FROM t ORDER BY l2_distance(v, {}) LIMIT 3", QUERIES[0])).await;
    assert!(plan.join("\n").contains("index: graph_rows=5000"), "{plan:?}");
    for condition in ["", "WHERE tenth = 3", "WHERE tenth <> 4", "WHERE id > 4990"] {
        let recall = recall(&fixture, condition).await;
        assert!(recall >= 0.95, "{condition}: {recall}");
    }
    fixture.affected("DELETE FROM t WHERE tenth = 1").await;
    fixture.affected("UPDATE t SET tenth = 20 WHERE tenth = 2").await;
    fixture.affected(&insert(5001, 5600)).await;
    for condition in ["", "WHERE tenth = 20", "WHERE id > 5000"] {
        let recall = recall(&fixture, condition).await;
        assert!(recall >= 0.95, "{condition}: {recall}");
    }
    fixture.database.flush().await.unwrap();
    settle(&fixture).await;
    let recall = recall(&fixture, "").await;
    assert!(recall >= 0.95, "{recall}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bound_vector_searches_too() {
    let fixture = filled(100).await;
    let prepared = fixture.session.prepare("SELECT id FROM t ORDER BY cosine_distance(v, ?) LIMIT 1").await.unwrap();
    let literal = fixture.query("SELECT v AS \"$1\" FROM t WHERE id = 42").await;
    let found = fixture.session.execute_prepared(&prepared, &literal).await.unwrap();
    let found = crate::harness::collect(found).await.unwrap();
    assert_eq!(crate::harness::lines(&found), ["42"]);
}

const NEAREST_ONE: &str = "SELECT id FROM t ORDER BY l2_distance(v, {q}) LIMIT 1";

/// How many of many queries find the row that is nearest.
async fn found_first(fixture: &Fixture) -> usize {
    let mut found = 0;
    for at in 0..60 {
        let query = format!("ARRAY[sin({at}), cos({at} * 3), sin({at} * 0.7), cos({at} * 1.1), sin({at} * 9), 0.3]");
        let sql = NEAREST_ONE.replace("{q}", &query);
        let exact = sql.replace("l2_distance", "0 + l2_distance");
        found += usize::from(fixture.lines(&sql).await == fixture.lines(&exact).await);
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_sets_how_wide_its_searches_look() {
    let fixture = filled(6000).await;
    fixture.affected("CREATE INDEX ON t USING HNSW (v) WITH (metric = 'l2', m = 4, ef_construction = 8)").await;
    settle(&fixture).await;
    let explained = async |statement: &str| fixture.lines(&format!("EXPLAIN {statement}")).await.join("\n");
    let statement = NEAREST_ONE.replace("{q}", QUERIES[0]);
    assert!(!explained(&statement).await.contains("ef_search"));
    fixture.affected("SET hnsw.ef_search = 1").await;
    let narrow = found_first(&fixture).await;
    fixture.affected("SET SESSION hnsw.ef_search TO '600'").await;
    assert!(explained(&statement).await.contains("ef_search=600"));
    let wide = found_first(&fixture).await;
    assert!(wide >= 58 && narrow < wide, "{narrow} and {wide} of 60");
    let called = "SELECT id FROM vector_search(t, ARRAY[1, 0, 0, 0, 0, 0], v, 1, metric => 'l2', ef_search => 7)";
    assert!(explained(called).await.contains("ef_search=7"));
    assert!(explained(&called.replace(", ef_search => 7", "")).await.contains("ef_search=600"));
    fixture.affected("SET ivfflat.probes = 5").await;
    assert!(explained(&statement).await.contains("ef_search=600, nprobes=5"));
    fixture.affected("RESET hnsw.ef_search").await;
    fixture.affected("SET ivf.nprobes = DEFAULT").await;
    let plan = explained(&statement).await;
    assert!(!plan.contains("ef_search") && !plan.contains("nprobes"), "{plan}");
}
