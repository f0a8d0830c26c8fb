// Type 7: decides itself. Counts its runs in the job's storage, and calls ping(runs) every second time.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"os"
)

const (
	target = "0x7777777777777777777777777777777777777777"
	ping   = "0x773acdef" // the selector of ping(uint256)
)

func main() {
	var task struct {
		Time    int64 `json:"time"`
		Storage struct {
			Runs int64 `json:"runs"`
		} `json:"storage"`
	}
	if err := json.NewDecoder(os.Stdin).Decode(&task); err != nil {
		log.Fatal(err)
	}
	runs := task.Storage.Runs + 1
	due, parity := runs%2 == 0, "odd"
	if due {
		parity = "even"
	}
	log.Printf("run %d", runs) // on stderr, for people: only stdout is the result
	decision := map[string]any{
		"shouldExecute":  due,
		"targetContract": target,
		"calldata":       fmt.Sprintf("%s%064x", ping, runs),
		"metadata":       map[string]any{"timestamp": task.Time, "reason": fmt.Sprintf("run %d is %s", runs, parity)},
		"storageUpdates": map[string]any{"runs": runs},
	}
	if err := json.NewEncoder(os.Stdout).Encode(decision); err != nil {
		log.Fatal(err)
	}
}
