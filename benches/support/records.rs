//! Synthetic records with realistic shapes: a tweet, a GitHub event, a wide row, and a measurement with
//! objects and arrays. Each has columns for all of its fields.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field as ArrowField, Fields, TimeUnit};
use millstream::decode::Field;

/// One kind of record.
pub struct Kind {
    pub name: &'static str,
    pub fields: Vec<Field>,
    /// Makes the record with the given number.
    pub make: fn(usize) -> String,
}

pub fn kinds() -> Vec<Kind> {
    vec![
        Kind { name: "tweet", fields: tweet_fields(), make: tweet },
        Kind { name: "GitHub event", fields: event_fields(), make: event },
        Kind { name: "40 columns", fields: wide_fields(), make: wide },
        Kind { name: "objects and arrays", fields: nested_fields(), make: nested },
    ]
}

const INT: DataType = DataType::Int64;
const TEXT: DataType = DataType::Utf8;
const FLAG: DataType = DataType::Boolean;

fn time() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into()))
}

fn object(members: &[(&str, DataType)]) -> DataType {
    let member =
        |(name, data_type): &(&str, DataType)| ArrowField::new(*name, data_type.clone(), true);
    DataType::Struct(Fields::from(members.iter().map(member).collect::<Vec<_>>()))
}

fn array(item: DataType) -> DataType {
    DataType::List(Arc::new(ArrowField::new("item", item, true)))
}

fn columns(columns: &[(&str, DataType)]) -> Vec<Field> {
    let field = |(name, data_type): &(&str, DataType)| Field {
        name: (*name).to_owned(),
        data_type: data_type.clone(),
        nullable: true,
        format: None,
    };
    columns.iter().map(field).collect()
}

/// A pseudo-random number that depends on the record's number and a position in it.
fn chance(n: usize, place: usize) -> usize {
    let mixed = (n as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (place as u64) << 32;
    (mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 33) as usize
}

fn pick<T: Copy>(all: &[T], n: usize, place: usize) -> T {
    all[chance(n, place) % all.len()]
}

fn clock(n: usize) -> String {
    format!(
        "2019-10-{:02}T{:02}:{:02}:{:02}Z",
        1 + n / 86_400 % 28,
        n / 3600 % 24,
        n / 60 % 60,
        n % 60
    )
}

fn tweet_fields() -> Vec<Field> {
    let indices = || array(INT);
    let user = object(&[
        ("id", INT),
        ("id_str", TEXT),
        ("name", TEXT),
        ("screen_name", TEXT),
        ("location", TEXT),
        ("description", TEXT),
        ("url", TEXT),
        ("followers_count", INT),
        ("friends_count", INT),
        ("listed_count", INT),
        ("created_at", TEXT),
        ("verified", FLAG),
        ("lang", TEXT),
        ("profile_image_url", TEXT),
    ]);
    let tag = object(&[("text", TEXT), ("indices", indices())]);
    let mention = object(&[
        ("screen_name", TEXT),
        ("name", TEXT),
        ("id", INT),
        ("id_str", TEXT),
        ("indices", indices()),
    ]);
    let entities = object(&[
        ("hashtags", array(tag)),
        ("urls", array(TEXT)),
        ("user_mentions", array(mention)),
    ]);
    columns(&[
        ("metadata", object(&[("result_type", TEXT), ("iso_language_code", TEXT)])),
        ("created_at", TEXT),
        ("id", INT),
        ("id_str", TEXT),
        ("text", TEXT),
        ("source", TEXT),
        ("truncated", FLAG),
        ("in_reply_to_status_id", INT),
        ("in_reply_to_screen_name", TEXT),
        ("user", user),
        ("geo", TEXT),
        ("retweet_count", INT),
        ("favorite_count", INT),
        ("entities", entities),
        ("favorited", FLAG),
        ("lang", TEXT),
    ])
}

fn tweet(n: usize) -> String {
    let texts = [
        r"@aym0566x \n\n名前:前田あゆみ\n第一印象:なんか怖っ！\n今の印象:とりあえずキモい。噛み合わない",
        r"RT @KATANA77: えっそれは・・・（一同） http:\/\/t.co\/PkCJAcSuYK",
        r"I\u2019m at the \u201cOld Mill\u201d with friends \ud83d\ude00 see you there!",
        r"ルルちゃん家の猫が可愛い #猫 \/ #cat",
        r"The quick brown fox jumps over the lazy dog, and then it goes to sleep for a while.",
    ];
    let names = ["AYUMI", "シルエット", "やじるし", "John Smith", "Päivi"];
    let (id, user) = (505_874_924_095_815_681 + n, 1_000_000_000 + chance(n, 1) % 1_000_000_000);
    let tags = match chance(n, 2) % 3 {
        0 => r#"{"text":"猫","indices":[12,14]},{"text":"cat","indices":[17,21]}"#,
        _ => "",
    };
    let mention = chance(n, 3) % 1_000_000_000;
    let mentions = match n % 2 {
        0 => format!(
            r#"{{"screen_name":"aym0566x","name":"前田あゆみ","id":{mention},"id_str":"{mention}","indices":[0,9]}}"#
        ),
        _ => String::new(),
    };
    let reply = if n.is_multiple_of(3) { (id - 77).to_string() } else { "null".to_owned() };
    format!(
        r#"{{"metadata":{{"result_type":"recent","iso_language_code":"ja"}},"created_at":"Sun Aug 31 00:{:02}:{:02} +0000 2014","id":{id},"id_str":"{id}","text":"{}","source":"<a href=\"http:\/\/twitter.com\/download\/iphone\" rel=\"nofollow\">Twitter for iPhone<\/a>","truncated":false,"in_reply_to_status_id":{reply},"in_reply_to_screen_name":null,"user":{{"id":{user},"id_str":"{user}","name":"{}","screen_name":"user_{user}","location":"関西","description":"元野球部マネージャー❤︎…最高の夏をありがとう…❤︎","url":null,"followers_count":{},"friends_count":{},"listed_count":{},"created_at":"Thu Feb 13 08:25:11 +0000 2014","verified":false,"lang":"ja","profile_image_url":"http:\/\/pbs.twimg.com\/profile_images\/{user}\/rkb_normal.jpeg"}},"geo":null,"retweet_count":{},"favorite_count":{},"entities":{{"hashtags":[{tags}],"urls":[],"user_mentions":[{mentions}]}},"favorited":false,"lang":"ja"}}"#,
        n / 60 % 60,
        n % 60,
        pick(&texts, n, 4),
        pick(&names, n, 5),
        chance(n, 6) % 5000,
        chance(n, 7) % 1000,
        chance(n, 8) % 50,
        chance(n, 9) % 100,
        chance(n, 10) % 100,
    )
}

fn event_fields() -> Vec<Field> {
    let actor = || {
        object(&[
            ("id", INT),
            ("login", TEXT),
            ("gravatar_id", TEXT),
            ("url", TEXT),
            ("avatar_url", TEXT),
        ])
    };
    let commit = object(&[
        ("sha", TEXT),
        ("author", object(&[("email", TEXT), ("name", TEXT)])),
        ("message", TEXT),
        ("distinct", FLAG),
        ("url", TEXT),
    ]);
    let payload = object(&[
        ("push_id", INT),
        ("size", INT),
        ("distinct_size", INT),
        ("ref", TEXT),
        ("head", TEXT),
        ("before", TEXT),
        ("commits", array(commit)),
        ("action", TEXT),
    ]);
    columns(&[
        ("id", TEXT),
        ("type", TEXT),
        ("actor", actor()),
        ("repo", object(&[("id", INT), ("name", TEXT), ("url", TEXT)])),
        ("payload", payload),
        ("public", FLAG),
        ("created_at", time()),
        ("org", actor()),
    ])
}

fn event(n: usize) -> String {
    let sha = |place| format!("{:010x}{:010x}{:020x}", chance(n, place), chance(n, place + 1), n);
    let (actor, repo) = (chance(n, 1) % 10_000_000, chance(n, 2) % 30_000_000);
    let commits: Vec<String> = (0..1 + n % 3)
        .map(|commit| {
            format!(
                r#"{{"sha":"{0}","author":{{"email":"user{actor}@example.com","name":"user{actor}"}},"message":"Altered BingBot.jar\n\nFixed issue with \"multiple\" account support","distinct":true,"url":"https://api.github.com/repos/user{actor}/repo{repo}/commits/{0}"}}"#,
                sha(10 + commit)
            )
        })
        .collect();
    let (kind, payload) = match n % 4 {
        0 => ("WatchEvent", r#"{"action":"started"}"#.to_owned()),
        _ => (
            "PushEvent",
            format!(
                r#"{{"push_id":{},"size":{1},"distinct_size":{1},"ref":"refs/heads/master","head":"{2}","before":"{3}","commits":[{4}]}}"#,
                536_863_970 + n,
                commits.len(),
                sha(10),
                sha(20),
                commits.join(",")
            ),
        ),
    };
    let org = match n % 5 {
        0 => format!(
            r#","org":{{"id":{0},"login":"org{0}","gravatar_id":"","url":"https://api.github.com/orgs/org{0}","avatar_url":"https://avatars.githubusercontent.com/u/{0}?"}}"#,
            chance(n, 5) % 100_000
        ),
        _ => String::new(),
    };
    format!(
        r#"{{"id":"{}","type":"{kind}","actor":{{"id":{actor},"login":"user{actor}","gravatar_id":"","url":"https://api.github.com/users/user{actor}","avatar_url":"https://avatars.githubusercontent.com/u/{actor}?"}},"repo":{{"id":{repo},"name":"user{actor}/repo{repo}","url":"https://api.github.com/repos/user{actor}/repo{repo}"}},"payload":{payload},"public":true,"created_at":"{}"{org}}}"#,
        2_489_651_045 + n,
        clock(n),
    )
}

/// The type of one of the forty columns, by its number.
fn wide_type(column: usize) -> DataType {
    match column % 4 {
        0 => INT,
        1 => DataType::Float64,
        2 => TEXT,
        _ if column % 8 == 3 => FLAG,
        _ => time(),
    }
}

fn wide_fields() -> Vec<Field> {
    let names: Vec<String> = (0..40).map(|column| format!("column_{column}")).collect();
    let all: Vec<_> = (0..40).map(|column| (names[column].as_str(), wide_type(column))).collect();
    columns(&all)
}

fn wide(n: usize) -> String {
    let words =
        ["hall", "kitchen", "living room", "bathroom", "a somewhat longer text than others"];
    let value = |column: usize| match wide_type(column) {
        INT => (chance(n, column) % 1_000_000).to_string(),
        DataType::Float64 => {
            format!("{}.{:03}", chance(n, column) % 1000, chance(n, column + 50) % 1000)
        }
        TEXT => format!("\"{}\"", pick(&words, n, column)),
        FLAG => chance(n, column).is_multiple_of(2).to_string(),
        _ => format!("\"{}\"", clock(n + column)),
    };
    let members: Vec<_> =
        (0..40).map(|column| format!("\"column_{column}\":{}", value(column))).collect();
    format!("{{{}}}", members.join(","))
}

fn nested_fields() -> Vec<Field> {
    let floor = object(&[("name", TEXT), ("level", INT)]);
    let place = object(&[("lat", DataType::Float64), ("lon", DataType::Float64), ("floor", floor)]);
    let alarm = object(&[("code", INT), ("text", TEXT), ("at", time())]);
    columns(&[
        ("device", TEXT),
        ("at", time()),
        ("place", place),
        ("samples", array(DataType::Float64)),
        ("counts", array(INT)),
        ("tags", array(TEXT)),
        ("alarms", array(alarm)),
    ])
}

fn nested(n: usize) -> String {
    let samples: Vec<_> =
        (0..16).map(|i| format!("{}.{:02}", chance(n, i) % 100, chance(n, i + 20) % 100)).collect();
    let counts: Vec<_> = (0..8).map(|i| (chance(n, i + 40) % 10_000).to_string()).collect();
    let alarms = match n % 4 {
        0 => format!(r#"{{"code":{},"text":"too hot","at":"{}"}}"#, n % 50, clock(n)),
        _ => String::new(),
    };
    format!(
        r#"{{"device":"sensor-{}","at":"{}","place":{{"lat":60.{:06},"lon":24.{:06},"floor":{{"name":"second","level":2}}}},"samples":[{}],"counts":[{}],"tags":["indoor","{}"],"alarms":[{alarms}]}}"#,
        n % 1000,
        clock(n),
        chance(n, 60) % 1_000_000,
        chance(n, 61) % 1_000_000,
        samples.join(","),
        counts.join(","),
        pick(&["hall", "kitchen", "attic"], n, 62),
    )
}
