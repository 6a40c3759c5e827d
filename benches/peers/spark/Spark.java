import static org.apache.spark.sql.functions.approx_count_distinct;
import static org.apache.spark.sql.functions.col;
import static org.apache.spark.sql.functions.count;
import static org.apache.spark.sql.functions.expr;
import static org.apache.spark.sql.functions.from_json;
import static org.apache.spark.sql.functions.lit;
import static org.apache.spark.sql.functions.window;

import org.apache.spark.sql.SparkSession;
import org.apache.spark.sql.streaming.Trigger;
import org.apache.spark.sql.types.StructType;

/** The hourly windows in Spark Structured Streaming: one core; ends at the end of the topic. */
public class Spark {
    public static void main(String[] args) throws Exception {
        String brokers = args[0], topic = args[1], results = args[2], scratch = args[3];
        var spark = SparkSession.builder()
            .master("local[1]")
            .config("spark.ui.enabled", "false")
            .config("spark.sql.session.timeZone", "UTC")
            .config("spark.sql.shuffle.partitions", "1")
            .config("spark.local.dir", scratch)
            .config("spark.driver.host", "127.0.0.1")
            .getOrCreate();
        spark.sparkContext().setLogLevel("WARN");
        var positions = new StructType()
            .add("part_id", "long").add("ts_date", "string").add("ts_time", "string").add("room", "string");
        spark.readStream().format("kafka")
            .option("kafka.bootstrap.servers", brokers)
            .option("subscribe", topic)
            .option("startingOffsets", "earliest")
            .option("kafka.max.poll.records", 10_000)
            .load()
            .select(from_json(col("value").cast("string"), positions).as("position"))
            .select("position.*")
            .withColumn("event_time", expr("to_timestamp(ts_date || ' ' || ts_time, 'yyyyMMdd HH:mm:ss')"))
            .withWatermark("event_time", "30 seconds")
            .groupBy(window(col("event_time"), "1 hour"), col("part_id"))
            .agg(count(lit(1)).as("events"), approx_count_distinct("room").as("rooms"))
            .select(expr("to_json(struct(window.start AS window_start, part_id, events, rooms)) AS value"))
            .writeStream().format("kafka")
            .option("kafka.bootstrap.servers", brokers)
            .option("topic", results)
            .option("checkpointLocation", scratch + "/checkpoint")
            .outputMode("update")
            .trigger(Trigger.AvailableNow())
            .start()
            .awaitTermination();
        spark.stop();
    }
}
