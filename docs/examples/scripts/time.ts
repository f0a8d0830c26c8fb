// Type 2: the arguments of ping(uint256) at the second that is due. Here: that second with 18 decimals.
import { readFileSync } from "fs";

interface Task {
  time: number;
}

const task: Task = JSON.parse(readFileSync(0, "utf8"));

// Text, not a number: a number of JavaScript is exact up to 2^53 only.
console.log(JSON.stringify([(BigInt(task.time) * 10n ** 18n).toString()]));
