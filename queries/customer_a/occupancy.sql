-- The number of persons in each room now. A room without persons is deleted from the result.
CREATE MATERIALIZED VIEW occupancy AS
SELECT room, count(*) AS persons
FROM current_room
GROUP BY room;
