import org.apache.flink.configuration.Configuration;
import org.apache.flink.table.api.EnvironmentSettings;
import org.apache.flink.table.api.TableEnvironment;

/** The hourly windows in Flink SQL: one slot, in this process; ends at the end of the topic. */
public class Flink {
    public static void main(String[] args) throws Exception {
        String brokers = args[0], topic = args[1], results = args[2], scratch = args[3];
        var settings = new Configuration();
        settings.setString("parallelism.default", "1");
        settings.setString("pipeline.object-reuse", "true");
        settings.setString("execution.checkpointing.interval", "1 s");
        settings.setString("execution.checkpointing.storage", "filesystem");
        settings.setString("execution.checkpointing.dir", "file://" + scratch);
        settings.setString("table.local-time-zone", "UTC");
        settings.setString("table.exec.mini-batch.enabled", "true");
        settings.setString("table.exec.mini-batch.allow-latency", "1 s");
        settings.setString("table.exec.mini-batch.size", "50000");
        var tables = TableEnvironment.create(
            EnvironmentSettings.newInstance().inStreamingMode().withConfiguration(settings).build());
        tables.executeSql("""
            CREATE TABLE positions (
              part_id BIGINT, ts_date STRING, ts_time STRING, room STRING,
              event_time AS TO_TIMESTAMP(ts_date || ' ' || ts_time, 'yyyyMMdd HH:mm:ss'),
              WATERMARK FOR event_time AS event_time - INTERVAL '30' SECOND
            ) WITH (
              'connector' = 'kafka', 'topic' = '%s', 'properties.bootstrap.servers' = '%s',
              'scan.startup.mode' = 'earliest-offset', 'scan.bounded.mode' = 'latest-offset',
              'format' = 'json')""".formatted(topic, brokers));
        tables.executeSql("""
            CREATE TABLE hourly (
              window_start TIMESTAMP(3), part_id BIGINT, events BIGINT, rooms BIGINT
            ) WITH (
              'connector' = 'kafka', 'topic' = '%s', 'properties.bootstrap.servers' = '%s',
              'sink.delivery-guarantee' = 'exactly-once', 'sink.transactional-id-prefix' = '%1$s',
              'properties.transaction.timeout.ms' = '600000',
              'format' = 'json')""".formatted(results, brokers));
        tables.executeSql("""
            INSERT INTO hourly
            SELECT window_start, part_id, count(*), count(DISTINCT room)
            FROM TABLE(TUMBLE(TABLE positions, DESCRIPTOR(event_time), INTERVAL '1' HOUR))
            GROUP BY window_start, window_end, part_id""").await();
    }
}
