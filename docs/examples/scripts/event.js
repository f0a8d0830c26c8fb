// Type 4: the arguments of ping(uint256) for an event. Here: the first word of its data, in full.
const { event } = JSON.parse(require("fs").readFileSync(0, "utf8"));

console.log(JSON.stringify([BigInt(event.data.slice(0, 66)).toString()]));
