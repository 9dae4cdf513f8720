//! The properties of the fuzz targets, tried within bounds: seeds, each with bytes changed at random, and plain noise.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

#[path = "../../fuzz/properties.rs"]
mod properties;

const CASES: u32 = 3_000;

/// Tries `property` on noise and on changed copies of the seeds.
fn holds(property: fn(&[u8]), seeds: &[&str]) {
    let seeds: Vec<Vec<u8>> = seeds.iter().map(|seed| seed.as_bytes().to_vec()).collect();
    for seed in &seeds {
        property(seed);
    }
    let changed =
        (prop::sample::select(seeds), prop::collection::vec((any::<usize>(), any::<u8>(), 0..3u8), 0..6))
            .prop_map(|(mut bytes, changes)| {
                for (place, byte, what) in changes {
                    let place = place % (bytes.len() + 1);
                    match what {
                        0 => bytes.insert(place, byte),
                        1 if place < bytes.len() => bytes[place] = byte,
                        _ if place < bytes.len() => drop(bytes.remove(place)),
                        _ => {}
                    }
                }
                bytes
            });
    let noise = prop::collection::vec(any::<u8>(), 0..200);
    let mut runner = TestRunner::new(Config { cases: CASES, failure_persistence: None, ..Config::default() });
    runner
        .run(&prop_oneof![4 => changed, 1 => noise], |bytes| {
            property(&bytes);
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn any_stream_of_messages_is_decoded_or_refused() {
    holds(
        properties::pgoutput_message,
        &[
            "\0\x15B\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\x07",
            "\0\x20R\0\0\0\0app\0t\0d\0\x02\x01a\0\0\0\0\x17\x7f\x7f\x7f\x7f\0b\0\0\0\0\x19\x7f\x7f\x7f\x7f",
            "\0\x12I\0\0\0\0N\0\x02t\0\0\0\x011t\0\0\0\x01x",
        ],
    );
}

#[test]
fn any_node_tree_is_read_or_refused() {
    holds(
        properties::node_tree,
        &[
            "({QUERY :commandType 1 :utilityStmt <> :resultRelation 0 :hasAggs false :rtable ({RTE :alias <> :eref \
         {ALIAS :aliasname t :colnames (\"a\" \"b c\")} :rtekind 0 :relid 16384}) :limitCount <>})",
            "{CONST :consttype 23 :consttypmod -1 :constlen 4 :constbyval true :constisnull false :constvalue 4 [ 1 0 0 0 0 0 0 0 ]}",
            "{OPEXPR :opno 96 :args ({VAR :varno 1 :varattno 1} {PARAM :paramkind 0}) :location 12}",
            "(b 1 2 3) (i 4 5) (o 6)",
        ],
    );
}

#[test]
fn any_number_is_read_and_written_as_it_was_meant() {
    holds(
        properties::numeric,
        &[
            "1.50\n-2.25",
            "0\n0.000",
            "123456789012345678901234567890.123456789\n-0.0000001",
            "NaN\n1",
            "Infinity\n-Infinity",
            "99999999999999999999\n1",
            "-0.5\n1e3",
        ],
    );
}

#[test]
fn any_text_of_a_value_is_read_and_written_the_same() {
    holds(
        properties::text_codec,
        &[
            "\0t",
            "\x02-2147483648",
            "\x03(1,\"a \"\"b\"\" \\\\\",2)",
            "\x051.500",
            "\x07NaN",
            "\x071e-300",
            "\x08(é,,)",
            "\x09\\x00ff",
            "\x0a2024-02-29",
            "\x0a4713-01-01 BC",
            "\x0b24:00:00",
            "\x0c2024-01-01 12:00:00.000001",
            "\x0d2024-01-01 12:00:00+00",
            "\x0dinfinity",
            "\x0e1 year -2 mons +3 days 04:05:06.7",
            "\x0fa0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
        ],
    );
}
