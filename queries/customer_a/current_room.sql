-- The current room of each resident, and since when: since the last event in another room.
CREATE MATERIALIZED VIEW current_room AS
SELECT part_id,
       first_value(room ORDER BY last_seen DESC, room) AS room,
       coalesce(nth_value(last_seen, 2 ORDER BY last_seen DESC), min(first_seen)) AS since
FROM (
  SELECT part_id,
         replace(lower(trim(room)), 'livingroom', 'living room') AS room,
         min(event_time) AS first_seen,
         max(event_time) AS last_seen
  FROM positions
  GROUP BY part_id, replace(lower(trim(room)), 'livingroom', 'living room')
)
GROUP BY part_id;
