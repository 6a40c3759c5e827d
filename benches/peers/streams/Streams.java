import static org.apache.kafka.streams.state.BuiltInDslStoreSuppliers.IN_MEMORY;

import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.ObjectReader;
import java.time.Duration;
import java.time.LocalDateTime;
import java.time.ZoneOffset;
import java.time.format.DateTimeFormatter;
import java.util.HashMap;
import java.util.Map;
import java.util.Properties;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.KeyValue;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Grouped;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.kstream.TimeWindows;
import org.apache.kafka.streams.state.WindowStore;

/** The hourly windows in Kafka Streams: one thread, count only; ends at the end of the topic. */
public class Streams {
    static final ObjectReader JSON = new ObjectMapper().readerFor(Position.class);
    static final DateTimeFormatter AT = DateTimeFormatter.ofPattern("yyyyMMdd HH:mm:ss");

    public record Position(long part_id, String ts_date, String ts_time, String room) {
        static Position read(byte[] json) {
            try {
                return JSON.readValue(json);
            } catch (java.io.IOException error) {
                throw new java.io.UncheckedIOException(error);
            }
        }

        long at() {
            return LocalDateTime.parse(ts_date + ' ' + ts_time, AT).toInstant(ZoneOffset.UTC).toEpochMilli();
        }
    }

    public static void main(String[] args) throws Exception {
        String brokers = args[0], topic = args[1], results = args[2], scratch = args[3];
        Serde<Position> positions =
            Serdes.serdeFrom((name, value) -> null, (name, json) -> Position.read(json));
        var builder = new StreamsBuilder();
        builder
            .stream(topic, Consumed.with(Serdes.String(), positions)
                .withTimestampExtractor((record, last) -> ((Position) record.value()).at()))
            .groupByKey(Grouped.with(Serdes.String(), positions))
            .windowedBy(TimeWindows.ofSizeAndGrace(Duration.ofHours(1), Duration.ofSeconds(30)))
            .count(Materialized.<String, Long, WindowStore<Bytes, byte[]>>as(IN_MEMORY).withCachingEnabled())
            .toStream()
            .map((window, events) -> KeyValue.pair(window.key(),
                "{\"window_start\":\"%s\",\"part_id\":%s,\"events\":%d}"
                    .formatted(window.window().startTime(), window.key(), events)))
            .to(results, Produced.with(Serdes.String(), Serdes.String()));

        var settings = new Properties();
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, results);
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, brokers);
        settings.put(StreamsConfig.STATE_DIR_CONFIG, scratch);
        settings.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, 1);
        settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        settings.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, 1_000);
        settings.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, 64 << 20);
        settings.put("auto.offset.reset", "earliest");
        try (var streams = new KafkaStreams(builder.build(), settings)) {
            var ends = ends(brokers, topic);
            streams.start();
            while (!isDone(streams, ends)) {
                Thread.sleep(50);
            }
        }
    }

    static Map<TopicPartition, Long> ends(String brokers, String topic) {
        var bytes = new ByteArrayDeserializer();
        try (var consumer = new KafkaConsumer<>(Map.of("bootstrap.servers", brokers), bytes, bytes)) {
            return consumer.endOffsets(consumer.partitionsFor(topic).stream()
                .map(partition -> new TopicPartition(topic, partition.partition())).toList());
        }
    }

    /** Whether every partition of the topic is committed up to its end. */
    static boolean isDone(KafkaStreams streams, Map<TopicPartition, Long> ends) {
        if (streams.state() == KafkaStreams.State.ERROR) {
            throw new IllegalStateException("the thread has failed");
        }
        var committed = new HashMap<TopicPartition, Long>();
        streams.metadataForLocalThreads().forEach(thread ->
            thread.activeTasks().forEach(task -> committed.putAll(task.committedOffsets())));
        return ends.entrySet().stream()
            .allMatch(end -> committed.getOrDefault(end.getKey(), -1L) >= end.getValue());
    }
}
