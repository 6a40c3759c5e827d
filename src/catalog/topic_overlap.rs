//! No topic is read twice (by two customers, or by two streams of one), and none is both read and
//! written.

use crate::catalog::dependency_graph::short;
use crate::catalog::loader::Draft;
use crate::error::{Error, Place};

/// A topic that the engine writes.
struct Output {
    topic: String,
    /// For messages: "results of query 'x' of customer_a".
    what: String,
    customer: usize,
    place: Option<Place>,
}

/// Adds to each draft its share of the errors; of two customers that clash, the later one that is
/// `selected` gets it.
pub(super) fn check(drafts: &mut [Draft], selected: &dyn Fn(&str) -> bool) {
    let outputs = outputs(drafts);
    let mut found: Vec<(usize, Error)> = shared_outputs(&outputs);
    found.extend(read_outputs(drafts, &outputs));
    found.extend(shared_inputs(drafts, selected));
    for (customer, error) in found {
        // A name that is taken makes a topic that is taken: told once.
        if let Some(draft) = drafts.get_mut(customer)
            && !draft.errors.iter().any(|told| told.place == error.place)
        {
            draft.errors.push(error);
        }
    }
}

fn outputs(drafts: &[Draft]) -> Vec<Output> {
    let mut outputs = Vec::new();
    for (customer, draft) in drafts.iter().enumerate() {
        let name = &draft.name;
        let mut add = |topic: String, what: String, place: Option<&Place>| {
            outputs.push(Output { topic, what, customer, place: place.cloned() });
        };
        add(format!("millstream.{name}.log"), format!("progress log of {name}"), None);
        add(format!("millstream.{name}.dead_letters"), format!("dead letters of {name}"), None);
        for (stream, _) in &draft.streams {
            let topic = format!("millstream.{name}.{}_late", stream.name);
            add(topic, format!("late rows of {name}.{}", stream.name), Some(&stream.place));
        }
        for query in &draft.queries {
            add(
                query.topic.clone(),
                format!("results of {name}.{}", query.name),
                Some(&query.place),
            );
        }
    }
    outputs
}

fn shared_outputs(outputs: &[Output]) -> Vec<(usize, Error)> {
    let mut errors = Vec::new();
    for (index, output) in outputs.iter().enumerate() {
        let first = outputs.iter().take(index).find(|other| other.topic == output.topic);
        // The pair is told where there is a place to tell it: engine topics have none.
        if let Some(first) = first
            && let Some((told, other)) = match (&output.place, &first.place) {
                (Some(_), _) => Some((output, first)),
                (None, Some(_)) => Some((first, output)),
                (None, None) => None,
            }
            && let Some(place) = told.place.clone()
        {
            let message = format!("topic '{}' takes the {} already", told.topic, other.what);
            let error = Error::sql(message).at(place).hint("choose another topic");
            errors.push((told.customer, error));
        }
    }
    errors
}

fn read_outputs(drafts: &[Draft], outputs: &[Output]) -> Vec<(usize, Error)> {
    let mut errors = Vec::new();
    for (customer, draft) in drafts.iter().enumerate() {
        for (stream, topics_place) in &draft.streams {
            let Some(output) = outputs.iter().find(|output| stream.topics.matches(&output.topic))
            else {
                continue;
            };
            let message = format!(
                "stream '{}' would read '{}', which Millstream writes",
                stream.name, output.topic
            );
            let error = (Error::sql(message).at(topics_place.clone()))
                .detail(format!("it holds the {}", output.what))
                .hint("a query may read another query's results by its name; narrow the topics");
            errors.push((customer, error));
        }
    }
    errors
}

fn shared_inputs(drafts: &[Draft], selected: &dyn Fn(&str) -> bool) -> Vec<(usize, Error)> {
    let mut errors = Vec::new();
    let streams: Vec<_> = (drafts.iter().enumerate())
        .flat_map(|(customer, draft)| {
            draft.streams.iter().map(move |(stream, place)| (customer, stream, place))
        })
        .collect();
    for (index, &later) in streams.iter().enumerate() {
        for &earlier in streams.iter().take(index) {
            let Some(topic) = earlier.1.topics.overlap(&later.1.topics) else { continue };
            let name =
                |customer: usize| drafts.get(customer).map_or("", |draft| draft.name.as_str());
            let (told, other) =
                if selected(name(later.0)) { (later, earlier) } else { (earlier, later) };
            let (readers, hint) = if earlier.0 == later.0 {
                let readers = format!("two streams, {} and {}", earlier.1.name, later.1.name);
                (readers, "declare one stream, which any number of queries may read")
            } else {
                let readers = format!("two customers, {} and {}", name(earlier.0), name(later.0));
                (readers, "a topic belongs to one customer")
            };
            let message = format!("topic '{topic}' would be read by {readers}");
            let error = (Error::sql(message).at(told.2.clone()))
                .detail(format!("the other one is at {}", short(other.2)))
                .hint(hint);
            errors.push((told.0, error));
        }
    }
    errors
}
