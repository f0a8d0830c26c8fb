// Type 4: the arguments of ping(uint256) for an event. Here: the first word of its data, in full.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"os"
)

func main() {
	var task struct {
		Event struct {
			Topics []string `json:"topics"`
			Data   string   `json:"data"`
		} `json:"event"`
	}
	if err := json.NewDecoder(os.Stdin).Decode(&task); err != nil {
		log.Fatal(err)
	}
	if len(task.Event.Data) < 66 {
		log.Fatal("the event has no data")
	}
	fmt.Printf("[%q]\n", task.Event.Data[:66]) // hex is an integer too
}
