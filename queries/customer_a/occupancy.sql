-- How many persons are in each room now; a room that empties is deleted from the result.
CREATE MATERIALIZED VIEW occupancy AS
SELECT room, count(*) AS persons
FROM current_room
GROUP BY room;
