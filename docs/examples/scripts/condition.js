// Type 6: the arguments of ping(uint256) when a condition came true. Here: how often it has.
console.log(JSON.stringify([process.env.TRIGGERX_TRIGGER_ID]));
