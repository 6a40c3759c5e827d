//! Checks that no topic is read by two streams (of one customer or of two) or written by two
//! queries, and that no topic is both read and written.

use crate::catalog::customer_builder::CustomerBuilder;
use crate::catalog::dependency_graph::format_place;
use crate::error::{Error, Place};

/// A topic that the engine writes.
struct WrittenTopic {
    topic: String,
    /// Its content, for messages: "results of customer_a.daily".
    content: String,
    /// The index of the customer.
    customer: usize,
    /// The place of the relation; `None` for a topic that exists once per customer.
    place: Option<Place>,
}

/// Adds each error to the customer that it concerns. An error that concerns two customers is added
/// to the later one that is selected.
pub(super) fn check(customers: &mut [CustomerBuilder], is_selected: &dyn Fn(&str) -> bool) {
    let written = written_topics(customers);
    let mut errors: Vec<(usize, Error)> = find_written_twice(&written);
    errors.extend(find_read_and_written(customers, &written));
    errors.extend(find_read_twice(customers, is_selected));
    for (customer, error) in errors {
        // A name that is used twice also yields a topic that is used twice: report only the name.
        if let Some(customer) = customers.get_mut(customer)
            && !customer.errors.iter().any(|reported| reported.place == error.place)
        {
            customer.errors.push(error);
        }
    }
}

fn written_topics(customers: &[CustomerBuilder]) -> Vec<WrittenTopic> {
    let mut written = Vec::new();
    for (index, customer) in customers.iter().enumerate() {
        let name = &customer.name;
        let mut add = |topic: String, content: String, place: Option<&Place>| {
            let place = place.cloned();
            written.push(WrittenTopic { topic, content, customer: index, place });
        };
        add(format!("millstream.{name}.log"), format!("progress log of {name}"), None);
        add(format!("millstream.{name}.dead_letters"), format!("dead letters of {name}"), None);
        for (stream, _) in &customer.streams {
            let topic = format!("millstream.{name}.{}_late", stream.name);
            add(topic, format!("late rows of {name}.{}", stream.name), Some(&stream.place));
        }
        for query in &customer.queries {
            add(
                query.topic.clone(),
                format!("results of {name}.{}", query.name),
                Some(&query.place),
            );
        }
    }
    written
}

fn find_written_twice(written: &[WrittenTopic]) -> Vec<(usize, Error)> {
    let mut errors = Vec::new();
    for (index, later) in written.iter().enumerate() {
        let earlier = written.iter().take(index).find(|other| other.topic == later.topic);
        // The error is reported at the one of the two that has a place.
        if let Some(earlier) = earlier
            && let Some((reported, other)) = match (&later.place, &earlier.place) {
                (Some(_), _) => Some((later, earlier)),
                (None, Some(_)) => Some((earlier, later)),
                (None, None) => None,
            }
            && let Some(place) = reported.place.clone()
        {
            let message =
                format!("topic '{}' already contains the {}", reported.topic, other.content);
            let error = Error::sql(message).at(place).hint("choose another topic");
            errors.push((reported.customer, error));
        }
    }
    errors
}

fn find_read_and_written(
    customers: &[CustomerBuilder],
    written: &[WrittenTopic],
) -> Vec<(usize, Error)> {
    let mut errors = Vec::new();
    for (index, customer) in customers.iter().enumerate() {
        for (stream, topics_place) in &customer.streams {
            let Some(output) = written.iter().find(|output| stream.topics.matches(&output.topic))
            else {
                continue;
            };
            let message = format!(
                "stream '{}' would read '{}', which Millstream writes",
                stream.name, output.topic
            );
            let error = (Error::sql(message).at(topics_place.clone()))
                .detail(format!("the topic contains the {}", output.content))
                .hint("narrow the topics; to read the results of a query, use its name in FROM");
            errors.push((index, error));
        }
    }
    errors
}

fn find_read_twice(
    customers: &[CustomerBuilder],
    is_selected: &dyn Fn(&str) -> bool,
) -> Vec<(usize, Error)> {
    let mut errors = Vec::new();
    let streams: Vec<_> = (customers.iter().enumerate())
        .flat_map(|(index, customer)| {
            customer.streams.iter().map(move |(stream, place)| (index, stream, place))
        })
        .collect();
    let name_of = |index: usize| customers.get(index).map_or("", |customer| customer.name.as_str());
    for (index, &later) in streams.iter().enumerate() {
        for &earlier in streams.iter().take(index) {
            let Some(topic) = earlier.1.topics.find_overlap(&later.1.topics) else { continue };
            let (reported, other) = match is_selected(name_of(later.0)) {
                true => (later, earlier),
                false => (earlier, later),
            };
            let (readers, hint) = if earlier.0 == later.0 {
                let readers = format!("two streams, {} and {}", earlier.1.name, later.1.name);
                (readers, "declare one stream; several queries can read it")
            } else {
                let (earlier, later) = (name_of(earlier.0), name_of(later.0));
                let readers = format!("two customers, {earlier} and {later}");
                (readers, "a topic can belong to only one customer")
            };
            let message = format!("topic '{topic}' would be read by {readers}");
            let error = (Error::sql(message).at(reported.2.clone()))
                .detail(format!("the other declaration is at {}", format_place(other.2)))
                .hint(hint);
            errors.push((reported.0, error));
        }
    }
    errors
}
