// Type 6: the arguments of ping(uint256) when a condition came true. Here: how often it has.
const times: string = process.env.TRIGGERX_TRIGGER_ID ?? "0";

console.log(JSON.stringify([times]));
